"""The registry that a caller names, in any of the ways in which fleets write its address."""

from modelexpress.settings import Settings


def registry_address(mx_server: str | None, settings: Settings) -> str:
    """Return HOST:PORT of the registry that a caller named, without a scheme, or of the environment.

    Args:
        mx_server: As the caller gave it; None or empty: it named none.
        settings: Of the environment.
    """
    return Settings(registry=mx_server).registry if mx_server else settings.registry


def with_registry(mx_server: str | None, settings: Settings) -> Settings:
    """Return settings that name the registry that a caller named; those of the environment where it named none.

    Args:
        mx_server: As the caller gave it; None or empty: it named none.
        settings: Of the environment.
    """
    return settings.model_copy(update={"registry": registry_address(mx_server, settings)}) if mx_server else settings
