"""What the engine asks the registry itself: whether there is a source of an identity."""

from dataclasses import dataclass
from typing import Any

from modelexpress.client import Client
from modelexpress.engines.trtllm.registry_address import registry_address
from modelexpress.errors import ModelExpressError
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from modelexpress.wire.records import SourceRef, SourceStatus


@dataclass(frozen=True)
class Listing:
    """Sources that the registry knows."""

    instances: tuple[SourceRef, ...]


class ProbingClient:
    """The registry as the engine's checkpoint loader asks it, before it decides how long to wait.

    Args:
        server_url: HOST:PORT; None takes the one of the environment.
    """

    def __init__(self, server_url: str | None = None) -> None:
        settings = Settings.read()
        address = registry_address(server_url, settings)
        self._client = Client(address, timeout=settings.answer_timeout)

    def list_sources(
        self, identity: SourceIdentity | None = None, status_filter: SourceStatus | None = SourceStatus.READY, **_: Any
    ) -> Listing:
        """Return the sources of an identity; of all, where it is None.

        Raises:
            RuntimeError: The registry could not be asked. The engine takes this one for a reason to load natively.
        """
        try:
            return Listing(tuple(self._client.list_sources(identity, status=status_filter)))
        except ModelExpressError as error:
            raise RuntimeError(str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
