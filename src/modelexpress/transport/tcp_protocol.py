"""What travels on a `tcp` connection after the greeting.

A request is a count and three columns: region, offset and bytes of each run. Requests may follow one another
without waiting. Each is answered, in order, with a verdict and, where that is GRANTED, with the bytes of its runs.
A verdict of WITHDRAWN or DENIED may take the place of any answer and is the last one.
"""

import struct
from collections.abc import Iterator, Sequence

from modelexpress.errors import TransportUnavailable
from modelexpress.transport.base import Run
from modelexpress.transport.crew import PART_BYTES, PART_RUNS

_COUNT = struct.Struct("<I")
_ROW_BYTES = 4 + 8 + 8


def encode_request(runs: Sequence[Run]) -> bytes:
    """Return the request for the bytes of `runs`."""
    count = len(runs)
    return struct.pack(
        f"<I{count}I{count}Q{count}Q",
        count,
        *(run.region for run in runs),
        *(run.offset for run in runs),
        *(run.nbytes for run in runs),
    )


class RequestStream:
    """Cuts what arrives on a connection into requests."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[list[Run]]:
        """Yield the runs of each request that `data` completes; they have no address here.

        Raises:
            TransportUnavailable: A request asks for more than any reader of this protocol does.
        """
        self._held += data
        while len(self._held) >= _COUNT.size:
            (count,) = _COUNT.unpack_from(self._held)
            if not 0 < count <= PART_RUNS:
                raise TransportUnavailable(f"a request for {count} runs")
            end = _COUNT.size + count * _ROW_BYTES
            if len(self._held) < end:
                return
            runs = _runs(self._held[_COUNT.size : end], count)
            self._held = self._held[end:]
            yield runs


def _runs(body: bytes, count: int) -> list[Run]:
    numbers = struct.unpack(f"<{count}I{count}Q{count}Q", body)
    regions, offsets, sizes = numbers[:count], numbers[count : 2 * count], numbers[2 * count :]
    if sum(sizes) > PART_BYTES:
        raise TransportUnavailable(f"a request for {sum(sizes)} bytes")
    rows = zip(regions, offsets, sizes, strict=True)
    return [Run(region, offset, 0, nbytes) for region, offset, nbytes in rows]
