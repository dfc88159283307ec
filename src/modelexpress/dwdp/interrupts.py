"""Interrupts that wait while half of something done would be worse than a little patience."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
