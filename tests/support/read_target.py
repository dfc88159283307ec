"""The target's side of tests of transports: memory to read into, and transfers that last."""

import contextlib
import ctypes
import time

from modelexpress.errors import TransportError
from modelexpress.transport import Reader, Run, Transfer
from tests.support.waiting import wait_until

MIB = 1 << 20
BIG = 16 * MIB
REPEATS = 400
"""Reading the big region so often takes seconds: long enough to be met in the middle."""
PROMPT = 8.0
"""Seconds within which an end must be noticed: the stall deadline of one second, on a machine that is busy."""


class Target:
    """Memory to read into."""

    def __init__(self, nbytes: int) -> None:
        self.bytes = bytearray(nbytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))

    def run(self, region: int, offset: int, nbytes: int, at: int = 0) -> Run:
        """Return the run that puts bytes of a region at byte `at`."""
        return Run(region, offset, self.address + at, nbytes)


def long_read(reader: Reader, target: Target) -> Transfer:
    """Return a transfer that is on its way and far from its end."""
    transfer = reader.read([target.run(0, 0, BIG)] * REPEATS)
    wait_until(lambda: transfer.progress > 0)
    return transfer


def seconds_until_over(transfer: Transfer) -> float:
    """Wait for the end of a transfer, whatever it is."""
    started = time.monotonic()
    with contextlib.suppress(TransportError):
        transfer.wait(60)
    return time.monotonic() - started
