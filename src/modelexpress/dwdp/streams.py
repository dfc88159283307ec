"""Streams and events: what orders copies and computation, on devices and, for a machine without one, on the host."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

from modelexpress.memory import Vmm

Copy = tuple[int, int, int]
"""Destination, source, bytes."""


class Event(ABC):
    """A mark in a stream. Who waits waits for the mark that was made last when it was told to wait."""

    @abstractmethod
    def close(self) -> None:
        """Give it back."""


class Stream(ABC):
    """Work in order, behind the back of whoever enqueues it. One thread at a time enqueues."""

    @abstractmethod
    def copy_all(self, copies: Sequence[Copy]) -> None:
        """Enqueue copies, in no order among themselves."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Let what is enqueued from now on begin after the event's last mark; at once where there is none."""

    @abstractmethod
    def record(self, event: Event) -> None:
        """Mark what was enqueued so far."""

    @abstractmethod
    def finish(self) -> None:
        """Return when everything enqueued is done.

        Raises:
            DeviceError: The device failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Give it back."""


class Machine(ABC):
    """What computes: its memory, its streams. Every method raises DeviceError where the device refuses."""

    vmm: Vmm

    @abstractmethod
    def compute(self) -> Stream:
        """Return the stream that the model runs on at present in this thread."""

    @abstractmethod
    def stream(self) -> Stream:
        """Return a new stream for copies."""

    @abstractmethod
    def event(self, *, timed: bool = False) -> Event:
        """Return a new event; one that is timed can be compared with others by `seconds`."""

    @abstractmethod
    def here(self) -> AbstractContextManager[None]:
        """Return a block in which this is the current device of the thread."""

    @abstractmethod
    def finish(self) -> None:
        """Return when everything that was enqueued in any stream, by whomever, is done."""

    @abstractmethod
    def trim(self) -> None:
        """Give memory that frameworks keep for later back to the device."""

    @abstractmethod
    def seconds(self, first: Event, second: Event) -> float:
        """Return the time between the last marks of two timed events, when both were reached."""
