"""What other versions read from the environment, and this one has no use for: fleets set it all the same."""

from typing import Any

from pydantic import BaseModel, Field

WITHOUT_EFFECT = "without effect"
"""Key of what is known of a field: whether it is accepted for the sake of other versions alone."""


def _ignored(variable: str, what: str, instead: str) -> Any:
    """Return the field of such a variable."""
    return Field(
        default="",
        validation_alias=variable,
        description=f"{what}; accepted, without effect: {instead}.",
        json_schema_extra={WITHOUT_EFFECT: True},
    )


class OtherVersions(BaseModel):
    """Variables that are accepted whatever they hold, and change nothing."""

    artifact_bundle_root: str = _ignored(
        "MX_ARTIFACT_BUNDLE_ROOT",
        "Where other versions stage bundles of caches",
        "this one stages in memory and within each cache",
    )
    metadata_port: str = _ignored(
        "MX_METADATA_PORT",
        "Port on which other versions exchange NIXL's metadata, one more for each device",
        "a source takes a free port, and tells targets which",
    )
    pool_registration: str = _ignored(
        "MX_POOL_REG",
        "How other versions choose to register whole allocations instead of tensors",
        "nixl always registers whole allocations here",
    )
    vmm_arena: str = _ignored(
        "MX_VMM_ARENA",
        "How other versions choose to keep weights in one arena of virtual memory",
        "engines place their weights themselves, and a script may use `CudaArena`",
    )
    source_selector: str = _ignored(
        "MX_P2P_SOURCE_SELECTOR",
        "How other versions choose among sources",
        "the source with the fewest readers is asked first, and of equals the one on the same host",
    )
    kubernetes_service_pattern: str = _ignored(
        "MX_K8S_SERVICE_PATTERN",
        "Kubernetes services at which other versions look for sources without a registry",
        "sources are looked for at the registry",
    )
    kubernetes_source_retries: str = _ignored(
        "MX_K8S_SOURCE_RETRIES", "How often other versions ask such a service again", "none is asked"
    )
    kubernetes_source_backoff: str = _ignored(
        "MX_K8S_SOURCE_BACKOFF_SECONDS", "How long other versions wait between two such questions", "none is asked"
    )
    model_uri: str = _ignored(
        "MX_MODEL_URI",
        "From where other versions read a model that no peer has",
        "the engine's own loader reads it from where the engine was told",
    )
