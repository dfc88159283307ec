"""Work that a closed reader leaves to the background: giving thousands of mappings back takes longer than a load may.

Nothing is read any more when it starts. It has ended when `settled` says so, and before the interpreter does.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable

MOST_AT_ONCE = 4
"""Closed readers whose mappings are given back in the background; the next one's closing does it itself."""
EXIT_SECONDS = 10.0
"""How long the end of the interpreter waits: a process may not leave in the middle of a call of the driver."""

_lock = threading.Lock()
_threads: set[threading.Thread] = set()
_owner = os.getpid()


def afterwards(work: Callable[[], None]) -> None:
    """Do some work on a thread of its own and return at once; if too much of it is under way, do it here."""
    with _lock:
        _forget_parents_threads()
        if room := len(_threads) < MOST_AT_ONCE:
            thread = threading.Thread(target=_run, args=(work,), name="mx-unmapping", daemon=True)
            _threads.add(thread)
            thread.start()
    if not room:
        work()


def settled(timeout: float | None = None) -> bool:
    """Wait until all that work is done, and return whether it is; None waits for as long as it takes."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with _lock:
        _forget_parents_threads()
        threads = tuple(_threads)
    for thread in threads:
        thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def _run(work: Callable[[], None]) -> None:
    try:
        work()
    finally:
        with _lock:
            _threads.discard(threading.current_thread())


def _forget_parents_threads() -> None:
    """In a forked child none of them runs."""
    global _owner
    if os.getpid() != _owner:
        _owner = os.getpid()
        _threads.clear()


atexit.register(settled, EXIT_SECONDS)
