"""Interrupts that wait while half of something done would be worse than a little patience."""

import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOMENT = 0.2
"""Seconds that an interrupt waits for at most while others are waited for."""


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back until the block ends; one block within another is allowed.

    Only in the main thread, where handlers run, and only where the handler is one of Python, as that which raises
    KeyboardInterrupt: what would end the process at once still does.

    Returns:
        What handles, when it is called, the signals that came; it raises what their handlers raise.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    found: dict[int, Callable[[int, FrameType | None], Any]] = {
        number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))
    }

    def handle() -> None:
        while came:
            number = came.pop(0)
            found[number](number, None)

    try:
        for number in found:
            signal.signal(number, lambda number, _: came.append(number))
        yield handle
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)
        handle()


def await_readable(link: socket.socket, seconds: float, meanwhile: Callable[[], object]) -> None:
    """Return when there is something to read from a socket, or it has ended.

    Args:
        link: A socket.
        seconds: To wait at most.
        meanwhile: Is called every moment; what it raises ends the waiting.

    Raises:
        TimeoutError: There was nothing.
    """
    poll, end = select.poll(), time.monotonic() + seconds
    poll.register(link, select.POLLIN)
    while not poll.poll(1000 * max(min(MOMENT, end - time.monotonic()), 0)):
        meanwhile()
        if time.monotonic() >= end:
            raise TimeoutError("timed out")
