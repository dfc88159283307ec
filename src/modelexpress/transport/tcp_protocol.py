"""What travels on a `tcp` connection after the greeting.

A request is a count and three columns: region, offset and bytes of each run. Requests may follow one another
without waiting. Each is answered, in order, with a verdict and, where that is GRANTED, with the bytes of its runs.
A verdict of WITHDRAWN or DENIED may take the place of any answer and is the last one.
"""

import struct
from collections.abc import Sequence

from modelexpress.errors import TransportUnavailable
from modelexpress.transport.base import Run
from modelexpress.transport.crew import PART_BYTES, PART_RUNS

COUNT = struct.Struct("<I")
_ROW_BYTES = 4 + 8 + 8
_MOST_OF_REGION = (1 << 32) - 1


def encode_request(runs: Sequence[Run]) -> bytes:
    """Return the request for the bytes of `runs`."""
    count = len(runs)
    return struct.pack(
        f"<I{count}I{count}Q{count}Q",
        count,
        *(min(run.region, _MOST_OF_REGION) for run in runs),
        *(run.offset for run in runs),
        *(run.nbytes for run in runs),
    )


def body_bytes(count: int) -> int:
    """Return the size of a request's columns.

    Raises:
        TransportUnavailable: No reader of this protocol asks for so many runs at once.
    """
    if not 0 < count <= PART_RUNS:
        raise TransportUnavailable(f"a request for {count} runs")
    return count * _ROW_BYTES


def decode_body(count: int, body: bytes) -> list[tuple[int, int, int]]:
    """Return (region, offset, bytes) of each run of a request.

    Raises:
        TransportUnavailable: It asks for more than any reader of this protocol does.
    """
    numbers = struct.unpack(f"<{count}I{count}Q{count}Q", body)
    regions, offsets, sizes = numbers[:count], numbers[count : 2 * count], numbers[2 * count :]
    if sum(sizes) > PART_BYTES:
        raise TransportUnavailable(f"a request for {sum(sizes)} bytes")
    return list(zip(regions, offsets, sizes, strict=True))
