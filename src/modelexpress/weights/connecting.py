"""Connecting: a target opens a source over the transports that both have, while it still reads the manifest."""

from collections.abc import Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from modelexpress.errors import TransportError, TransportUnavailable
from modelexpress.settings import Settings
from modelexpress.transport import Opened, Transport, available, open_first
from modelexpress.wire.peer import LeaseGrant


class Connections:
    """One target's connections with one source, each in the making from the start.

    Args:
        grant: What the source said when it granted its lease.
        transports: This process's own, best first.
        pool: Threads that connect.
        devices: The CUDA devices that need a connection each; None stands for the host.
    """

    def __init__(
        self, grant: LeaseGrant, transports: Sequence[Transport], pool: ThreadPoolExecutor, devices: Set[int | None]
    ) -> None:
        self._grant = grant
        self._transports = transports
        self._made = {device: pool.submit(self._open, transports, device) for device in devices}

    def get(self, device: int | None) -> Opened:
        """Wait for the connection that serves a device, or the host.

        Raises:
            TransportError: There is none.
        """
        return self._made[device].result()

    def go_on(self, device: int | None, error: TransportUnavailable) -> Opened:
        """Close the connection of a device, whose transport has turned out not to work, and return one over the next.

        Raises:
            TransportUnavailable: No further transport works; where there is none, this is `error`.
            TransportError: The source is gone, or refuses.
        """
        failed = self.get(device)
        failed.reader.close()
        made: Future[Opened] = Future()
        self._made[device] = made
        offered = {offer.name for offer in self._grant.transports if not offer.refused}
        later = self._transports[self._transports.index(failed.transport) + 1 :]
        left = [transport for transport in later if transport.name in offered]
        try:
            if not left:
                raise error
            made.set_result(self._open(left, device))
        except TransportError as none:
            made.set_exception(none)
        return made.result()

    def close(self) -> None:
        """Close what was made."""
        for made in self._made.values():
            if made.exception() is None:
                made.result().reader.close()

    def _open(self, transports: Sequence[Transport], device: int | None) -> Opened:
        return open_first(transports, self._grant.transports, self._grant.lease_id, device)


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
        connections = Connections(grant, self._transports.result(), self._pool, self._devices)
        try:
            yield connections
        finally:
            connections.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False)
        for transport in self._transports.result():
            transport.close()
