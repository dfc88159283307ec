"""A call that is held open, so that a registry misses this process at once when it dies."""

import time
from collections.abc import Callable

import grpc

_HELD_SECONDS = 5.0


class Attendance:
    """Made by `Client.attend`.

    Args:
        call: What is held open.
        broken: Called from another thread when the call ends after it was held for a while: one that is refused at once
            is not worth a second attempt at once.
    """

    def __init__(self, call: grpc.Call, broken: Callable[[], object]) -> None:
        self._call = call
        self._broken = broken
        self._began = time.monotonic()
        if not call.add_callback(self._ended):
            self._ended()

    @property
    def held(self) -> bool:
        """Whether the call is still open."""
        return bool(self._call.is_active())

    @property
    def unknown(self) -> bool:
        """Whether the registry has no such call: one of another make, or an older one."""
        return not self.held and self._call.code() is grpc.StatusCode.UNIMPLEMENTED

    def end(self) -> None:
        """End the call."""
        self._call.cancel()

    def _ended(self) -> None:
        if time.monotonic() - self._began > _HELD_SECONDS:
            self._broken()
