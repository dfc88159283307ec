"""Relaying: what a target has received and verified, served to others while the rest is on its way."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from modelexpress.peer import Relay
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.pieces import Pieces
from modelexpress.transfer.prefix import Integers
from modelexpress.wire.records import Member


class Relaying(ABC):
    """Serves what has arrived out of where it arrives, by a relay of this process's worker.

    Args:
        relay: Of the worker.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    @property
    def member(self) -> Member:
        """The worker as others ask it."""
        return self._relay.member

    @property
    def chunks(self) -> int:
        """Leading chunks that are verified here."""
        return self._relay.chunks

    def asks(self, member: Member) -> None:
        """Note which worker is asked."""
        self._relay.asks(member)

    def reads_from(self, above: tuple[Member, ...]) -> None:
        """Note which worker is read from, and those above that, nearest first."""
        self._relay.reads_from(above)

    @abstractmethod
    def open(self, manifest: Manifest, files: Mapping[str, bytes], planned: Sequence[Pieces]) -> None:
        """Begin to serve what a source's manifest lists, apart from what is still planned.

        Args:
            manifest: The source's, to which the room is open.
            files: The small files that belong to the material.
            planned: Every piece that will travel.
        """

    def verified(self, numbers: Integers) -> None:
        """Note that chunks are in place and verified, by their numbers in the order of the manifest."""
        self._relay.verified(numbers)
