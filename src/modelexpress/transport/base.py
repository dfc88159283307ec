"""The seam of every transport: a source exports regions, a target opens them and reads runs.

    source: export = transport.export(regions)      target: reader = transport.open(export.descriptor, token)
            export.grant(token)                             transfer = reader.read(runs)
            export.revoke(token)                            transfer.wait(timeout)
            export.close()                                  reader.close()

A token is the secret of one lease. What any implementation must do is checked by the suite in
tests/conformance/transport.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Self

from modelexpress.memory import Region


@dataclass(frozen=True, slots=True)
class Run:
    """One contiguous copy.

    Args:
        region: Index into the exported regions.
        offset: First byte within that region.
        address: Where the bytes go in this process.
        nbytes: How many.
    """

    region: int
    offset: int
    address: int
    nbytes: int


@dataclass(frozen=True)
class LinkLimit:
    """How fast the link could be: bytes per second, and how that was found, for people."""

    bytes_per_second: float
    how: str


class Transfer(ABC):
    """Runs on their way; made by `Reader.read`."""

    @property
    @abstractmethod
    def progress(self) -> int:
        """Bytes that have landed so far; never decreases."""

    @abstractmethod
    def done(self) -> bool:
        """Return whether `wait` would return or raise at once."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> None:
        """Return when every byte of every run has landed.

        Args:
            timeout: Seconds to wait; None waits for as long as the reader's own stall deadline allows.

        Raises:
            TransferTimeout: The timeout passed, or nothing arrived for the stall deadline.
            PeerLost: The source died, or the reader was closed.
            RegionWithdrawn: A run names a region, or bytes of one, that the source does not offer any more.
            AccessDenied: The lease was revoked.
            TransportUnavailable: Some of the memory cannot be reached this way after all; another transport may.
        """


class Reader(ABC):
    """One target's access to the regions of one export. Reads may overlap; threads may share it."""

    @abstractmethod
    def read(self, runs: Sequence[Run]) -> Transfer:
        """Start copying `runs` and return at once.

        The destinations must stay alive until the transfer is done or the reader is closed. When a run leaves its
        region, nothing is copied and `wait` raises RegionWithdrawn.
        """

    def limit(self) -> LinkLimit | None:
        """Measure the limit of the link that this reader uses in at most 100 ms; None where the transport knows it."""
        return None

    def advice(self) -> str:
        """Return what would make reading from this source faster, for people; empty where nothing is known."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """End every transfer. When it returns no late byte lands any more. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Export(ABC):
    """Regions of this process that are open to the holders of granted tokens."""

    @property
    @abstractmethod
    def descriptor(self) -> bytes:
        """What `Transport.open` needs on the other side. It holds no secret."""

    @abstractmethod
    def grant(self, token: str) -> None:
        """Let readers that show `token` in."""

    @abstractmethod
    def revoke(self, token: str) -> None:
        """Refuse `token` from now on, and end what its readers are reading. Unknown tokens are ignored."""

    @abstractmethod
    def close(self) -> None:
        """Withdraw the regions; readers get RegionWithdrawn. Closing twice is allowed."""


class Transport(ABC):
    """One way of moving bytes. An instance serves any number of exports and readers of its process."""

    name: ClassVar[str]

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return why this transport cannot work on this machine, or None."""

    @abstractmethod
    def export(self, regions: Sequence[Region]) -> Export:
        """Offer `regions`; their memory must stay valid until the export is closed.

        Raises:
            TransportUnavailable: These regions cannot be offered this way; the message says why.
        """

    @abstractmethod
    def open(self, descriptor: bytes, token: str, device: int | None = None) -> Reader:
        """Open an export of another process (or of this one).

        Args:
            descriptor: `Export.descriptor` as it came over the wire; it may be hostile.
            token: The lease's token.
            device: The CUDA device whose memory the runs go to; None: they go to host memory.

        Raises:
            TransportUnavailable: The source cannot be reached this way, for instance because it is another host.
            AccessDenied: The source refused this process or the token.
            RegionWithdrawn: The export was closed.
            PeerLost: The source is gone.
            TransferTimeout: The source did not answer within the stall deadline.
        """

    @abstractmethod
    def limit(self, descriptor: bytes) -> LinkLimit | None:
        """Measure or look up the limit of the link to that export in at most 100 ms; None where it is unknown."""

    @abstractmethod
    def close(self) -> None:
        """Stop serving: no port, no thread and no descriptor is left. Closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
