"""Connecting: a target opens a source over the transports that both have, while it still reads the manifest."""

from collections.abc import Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import Self

from modelexpress.settings import Settings
from modelexpress.transport import Opened, Transport, available, open_first
from modelexpress.wire.peer import LeaseGrant

Connections = Mapping[int | None, "Future[Opened]"]
"""For each CUDA device, and None for the host, the connection that serves it."""


@contextmanager
def usable_transports(settings: Settings) -> Iterator[tuple[Transport, ...]]:
    """Yield the transports that work in this process, fastest first, and close them afterwards."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(transport) for transport in available(settings).transports)


class Connector:
    """Connects one target with one source after the other, in threads of its own, until the block ends.

    Args:
        settings: Say which transports may be used.
        devices: Where the bytes may go.
    """

    def __init__(self, settings: Settings, devices: Set[int | None]) -> None:
        self._devices = devices
        self._pool = ThreadPoolExecutor(max(len(devices), 1), thread_name_prefix="mx-connect")
        # Found out while the registry is asked.
        self._transports = self._pool.submit(lambda: available(settings).transports)

    @contextmanager
    def connecting(self, grant: LeaseGrant) -> Iterator[Connections]:
        """Yield connections in the making to the source that granted a lease; close them afterwards."""
        connect = partial(open_first, self._transports.result(), grant.transports, grant.lease_id)
        connections = {device: self._pool.submit(connect, device) for device in self._devices}
        try:
            yield connections
        finally:
            for connection in connections.values():
                if connection.exception() is None:
                    connection.result().reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False)
        for transport in self._transports.result():
            transport.close()
