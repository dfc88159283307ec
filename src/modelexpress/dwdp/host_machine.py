"""Streams of the host: a thread each. What they promise is what those of a device do, so that order can be tested."""

import ctypes
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial

from modelexpress.dwdp.streams import Copy, Event, Machine, Stream
from modelexpress.errors import DeviceError
from modelexpress.memory import Vmm
from modelexpress.memory.host_vmm import HostVmm

_DEADLINE = 300.0
"""Seconds after which work that waits for a mark that nobody reaches gives up."""
_working: "weakref.WeakSet[HostStream]" = weakref.WeakSet()
"""All streams of the host in this process: those of one device, so to speak."""


class _Mark:
    """One recording of an event."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.moment = 0.0

    def reach(self) -> None:
        self.moment = time.perf_counter()
        self.reached.set()

    def wait(self) -> None:
        if not self.reached.wait(_DEADLINE):
            raise DeviceError(f"a stream of the host waited {_DEADLINE:g} s for a mark that was never reached")


class HostEvent(Event):
    """An event of host streams."""

    def __init__(self) -> None:
        self.mark: _Mark | None = None

    def close(self) -> None:
        self.mark = None


class HostStream(Stream):
    """A thread that does what it is given, in order."""

    def __init__(self, name: str = "dwdp-copies") -> None:
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        _working.add(self)

    def enqueue(self, work: Callable[[], object]) -> None:
        """Let the thread do something after what it was given before."""
        self._work.put(work)

    def copy_all(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            self.enqueue(partial(ctypes.memmove, *copy))

    def wait(self, event: Event) -> None:
        if (mark := _of_host(event).mark) is not None:
            self.enqueue(mark.wait)

    def record(self, event: Event) -> None:
        mark = _of_host(event).mark = _Mark()
        self.enqueue(mark.reach)

    def finish(self) -> None:
        done = threading.Event()
        self.enqueue(done.set)
        while self._thread.is_alive() and not done.wait(1.0):
            pass
        if self._failure is not None:
            raise DeviceError(f"a stream of the host failed: {self._failure}") from self._failure

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()
        _working.discard(self)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 -- whoever finishes the stream is told, as by a device
                self._failure = self._failure or error


class CallersStream(Stream):
    """The calling thread as a stream: torch computes on the host before it returns, so nothing is ever pending."""

    def copy_all(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            ctypes.memmove(*copy)

    def wait(self, event: Event) -> None:
        if (mark := _of_host(event).mark) is not None:
            mark.wait()

    def record(self, event: Event) -> None:
        mark = _of_host(event).mark = _Mark()
        mark.reach()

    def finish(self) -> None:
        """Return: nothing is pending."""

    def close(self) -> None:
        """Do nothing."""


class HostMachine(Machine):
    """Memory and threads of the host.

    Args:
        vmm: Makes its memory; None: in units of a page.
        compute: The stream that models run on; None: the thread that calls them.
    """

    def __init__(self, vmm: Vmm | None = None, compute: Stream | None = None) -> None:
        self.vmm = vmm or HostVmm()
        self._compute = compute or CallersStream()

    def compute(self) -> Stream:
        return self._compute

    def stream(self) -> Stream:
        return HostStream()

    def event(self, *, timed: bool = False) -> Event:
        return HostEvent()

    def here(self) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self) -> None:
        with ExitStack() as all_of_them:  # where one has failed, the others are waited for all the same
            for stream in (self._compute, *_working):
                all_of_them.callback(stream.finish)

    def trim(self) -> None:
        """Do nothing: the host's allocator gives large blocks back at once."""

    def seconds(self, first: Event, second: Event) -> float:
        start, end = _of_host(first).mark, _of_host(second).mark
        if start is None or end is None:
            raise DeviceError("an event that was never recorded has no time")
        return end.moment - start.moment


def _of_host(event: Event) -> HostEvent:
    if not isinstance(event, HostEvent):
        raise DeviceError(f"{type(event).__name__} is no event of host streams")
    return event
