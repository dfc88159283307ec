"""The farewell: whatever is still open is closed at interpreter exit and on SIGTERM."""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Closable(Protocol):
    """Something that must not be left open."""

    def close(self) -> None:
        """Close it; closing twice is allowed."""


_open: dict[int, Closable] = {}
_blocks: list[None] = []
_put_off: set[int] = set()


def close_at_exit(thing: Closable) -> None:
    """Close `thing` at interpreter exit or on SIGTERM, unless it was closed before.

    A SIGTERM handler that the process has set is called afterwards; without one the process ends as it would have.
    Where SIGTERM is ignored, or this is not the main thread, only the exit of the interpreter counts.
    """
    _open[id(thing)] = thing
    if threading.current_thread() is threading.main_thread():
        _watch_sigterm()


def closed(thing: Closable) -> None:
    """Forget a thing that was closed."""
    _open.pop(id(thing), None)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put the farewell of a SIGTERM off until the block ends.

    For closing on the main thread: the handler would run in the middle of it, and wait for a farewell that waits
    for the locks that closing holds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _blocks.append(None)
    try:
        yield
    finally:
        _blocks.pop()
        if _put_off and not _blocks:
            signal.raise_signal(_put_off.pop())


class ClosingThread:
    """A thread that is told to stop, and waited for: by `close`, at interpreter exit or on SIGTERM.

    Args:
        run: What it does; it returns soon after `stop` was set.
        name: Of the thread.
        stop: Set when it is to end.
    """

    def __init__(self, run: Callable[[], object], name: str, stop: threading.Event) -> None:
        self._owner = os.getpid()
        self._stop = stop
        self._thread = threading.Thread(target=run, name=name, daemon=True)
        close_at_exit(self)
        self._thread.start()

    def close(self) -> None:
        """End it. Closing twice is allowed, and nothing in a forked child."""
        if os.getpid() != self._owner:
            return
        with undisturbed():
            self._stop.set()
            self._thread.join()
            closed(self)


@atexit.register
def _close_all() -> None:
    while _open:
        _, thing = _open.popitem()
        thing.close()


def _watch_sigterm() -> None:
    previous = signal.getsignal(signal.SIGTERM)
    if previous in (None, signal.SIG_IGN) or getattr(previous, "_closes_all", False):
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        if _blocks:
            _put_off.add(number)
            return
        # On a thread: the main thread may hold, at this very instruction, a lock that closing needs.
        closer = threading.Thread(target=_close_all, name="mx-farewell")
        closer.start()
        closer.join(_LONGEST_FAREWELL)
        if callable(previous):
            previous(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    terminate._closes_all = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGTERM, terminate)


_LONGEST_FAREWELL = 10.0
"""Seconds; orchestrators kill a process some 30 seconds after they asked it to end."""

# A forked child holds copies of its parent's publications, which are not its own to withdraw.
os.register_at_fork(after_in_child=_open.clear)
