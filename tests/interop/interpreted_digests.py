"""Runs the digest kernel on host memory, in Triton's interpreter, and prints the digests as JSON.

Reads from standard input a list of requests: a launch shape, how much memory (whole pages of random bytes, as the
test makes them), and [offset, length] of ranges of it. Reading outside the memory is a segmentation fault.
"""

import ctypes
import json
import mmap
import os
import sys
from typing import Any

import numpy as np
import torch

from modelexpress.transfer.digest_kernel import Shape, add_tiles
from modelexpress.transfer.digest_numpy import LINE_WORDS, keys
from modelexpress.transfer.digest_tiles import cut_tiles, digests_from_sums
from tests.support.digest_inputs import Bytes, random_bytes


def between_guards(data: Bytes) -> Bytes:
    """Return a copy of whole pages, with pages before and behind that nobody may read."""
    page = mmap.PAGESIZE
    room = np.frombuffer(mmap.mmap(-1, data.size + 2 * page), np.uint8)
    room[page:-page] = data
    libc = ctypes.CDLL(None, use_errno=True)
    for address in (room.ctypes.data, room.ctypes.data + page + data.size):
        if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return room[page:-page]


def answer(request: dict[str, Any]) -> list[int]:
    shape = Shape(**request["shape"])
    memory = between_guards(random_bytes(request["memory"]))
    ranges = np.array(request["ranges"], np.uint64).reshape(-1, 2)
    addresses, lengths = ranges[:, 0] + np.uint64(memory.ctypes.data), ranges[:, 1].copy()
    tiles = cut_tiles(addresses, lengths, shape.tile)
    sums = torch.zeros((len(ranges), 2), dtype=torch.int64)
    add_tiles[(len(tiles.owners),)](
        torch.from_numpy(tiles.ranges),
        torch.from_numpy(tiles.owners),
        torch.from_numpy(keys(0, LINE_WORDS).view(np.int64)),
        sums,
        tile_lines=shape.tile,
        lines=shape.lines,
        lanes=shape.lanes,
    )
    digests: list[int] = digests_from_sums(sums.numpy().view(np.uint64), lengths).tolist()
    return digests


if __name__ == "__main__":
    print(json.dumps([answer(request) for request in json.load(sys.stdin)]))  # noqa: T201
