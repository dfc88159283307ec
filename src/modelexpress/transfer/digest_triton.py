"""Digests of device memory, on the device: one kernel launch for any number of ranges, beside other work.

Needs torch with CUDA and Triton (`pip install modelexpress[cuda]`). Nothing imports this module until a device's
memory is to be digested.
"""

# mypy: untyped-calls-exclude=torch

import subprocess
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from triton.errors import TritonError

from modelexpress.errors import DeviceError
from modelexpress.transfer.digest import Column, check_ranges, columns, digest
from modelexpress.transfer.digest_kernel import DEFAULT_SHAPE, Shape, add_tiles
from modelexpress.transfer.digest_numpy import LINE_WORDS, keys
from modelexpress.transfer.digest_tiles import Tiles, cut_tiles, digests_from_sums

# CUDA's own; the kernel's compiler; the C compiler that builds its launcher; the folder of Triton's cache.
_FAILURES: Final = (RuntimeError, TritonError, subprocess.SubprocessError, OSError)


class DeviceDigests:
    """Computes digests of a device's memory on a stream of its own.

    The constructor loads the kernel and checks it against the host: the first time on a machine this compiles for
    some seconds, later it takes milliseconds. One thread at a time may use an object.

    Args:
        device: Ordinal of the device, as torch counts in this process.
        shape: How the kernel divides its work.

    Raises:
        DeviceError: There is no such device, or the kernel does not compile or computes wrong digests there.

    Example:
        >>> digests = DeviceDigests(0)  # doctest: +SKIP
        >>> pending = digests.enqueue(addresses, lengths, after=[copies])  # doctest: +SKIP
        >>> pending.result()  # doctest: +SKIP
    """

    def __init__(self, device: int, shape: Shape = DEFAULT_SHAPE) -> None:
        self._device = torch.device("cuda", device)
        self._shape = shape
        words = keys(0, LINE_WORDS * (shape.lines + 1))  # the kernel takes a line of them; the rest is for `_check`
        try:
            self._stream = torch.cuda.Stream(self._device)
            with torch.cuda.stream(self._stream):
                self._keys = torch.from_numpy(words.view(np.int64)).to(self._device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise DeviceError(f"CUDA device {device} cannot be used for digests: {error}") from error
        self._check(digest(words.data))

    def enqueue(self, addresses: Column, lengths: Column, after: Iterable[int] = ()) -> "PendingDigests":
        """Start computing the digests of ranges that this device can read, and return without waiting.

        Ranges may have any alignment and may overlap; those aligned to 16 bytes are read at full speed. The caller
        vouches that every range stays mapped and unchanged until the result is there: CUDA does not recover from
        an access to memory that is not mapped.

        Args:
            addresses: First byte of each range, of this device's own memory or mapped from another one.
            lengths: Bytes of each range; 0 is allowed.
            after: CUDA streams of this device (CUstream handles, 0 for the default one): what they were given so
                far, the copies that fill the ranges, is waited for on the device.

        Raises:
            TypeError, ValueError: As `modelexpress.transfer.digest.digest_many`.
            DeviceError: CUDA refused the launch or has failed before.
        """
        addresses, lengths = columns(addresses, lengths)
        check_ranges(addresses, lengths)
        tiles = cut_tiles(addresses, lengths, self._shape.tile)
        try:
            with torch.cuda.stream(self._stream):
                for handle in after:
                    self._stream.wait_stream(self._stream_of(handle))
                sums = self._launch(tiles)
                finished = torch.cuda.Event(blocking=True)  # waiting sleeps: the core is needed elsewhere
                finished.record(self._stream)
        except _FAILURES as error:
            raise DeviceError(f"digests of {len(lengths)} ranges could not start: {error}") from error
        return PendingDigests(lengths, sums, finished)

    def _launch(self, tiles: Tiles) -> torch.Tensor:
        """Enqueue tables, kernel and the copy back; return the sums, in pinned memory that fills later."""
        sums = torch.zeros((len(tiles.ranges), 2), dtype=torch.int64, device=self._device)
        if len(tiles.owners):
            shape = self._shape
            add_tiles[(len(tiles.owners),)](
                self._upload(tiles.ranges),
                self._upload(tiles.owners),
                self._keys,
                sums,
                tile_lines=shape.tile,
                lines=shape.lines,
                lanes=shape.lanes,
                num_warps=shape.warps,
            )
        # Tables and sums may be let go: torch hands their memory only to what follows on this stream.
        host = torch.empty(sums.shape, dtype=torch.int64, pin_memory=True)
        return host.copy_(sums, non_blocking=True)

    def _upload(self, table: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(table).pin_memory().to(self._device, non_blocking=True)

    def _stream_of(self, handle: int) -> torch.cuda.Stream:
        if handle == 0:  # for torch.cuda.ExternalStream, 0 is a new stream
            return torch.cuda.default_stream(self._device)
        return torch.cuda.ExternalStream(handle, device=self._device)

    def _check(self, expected: int) -> None:
        """Compare the digest of the keys, by both ways of loading, with the host's.

        A kernel that a compiler got wrong would call good bytes damaged.
        """
        nbytes = np.array([self._keys.nbytes], np.uint64)
        found = self.enqueue(np.array([self._keys.data_ptr()], np.uint64), nbytes).result()
        if found.tolist() != [expected]:
            raise DeviceError(f"the digest kernel computes wrong digests on {self._device}: use the host's digests")


class PendingDigests:
    """Digests on their way from a device: what `DeviceDigests.enqueue` returns."""

    def __init__(self, lengths: Column, sums: torch.Tensor, finished: torch.cuda.Event) -> None:
        self._lengths = lengths
        self._sums = sums
        self._finished = finished

    def done(self) -> bool:
        """Return whether `result` would return at once.

        Raises:
            DeviceError: CUDA failed meanwhile.
        """
        try:
            return bool(self._finished.query())
        except RuntimeError as error:
            raise DeviceError(f"digests of {len(self._lengths)} ranges failed: {error}") from error

    def result(self) -> Column:
        """Wait, and return one digest per range, as uint64.

        Raises:
            DeviceError: CUDA failed meanwhile, for instance because a range is not mapped.
        """
        try:
            self._finished.synchronize()
        except RuntimeError as error:
            raise DeviceError(f"digests of {len(self._lengths)} ranges failed: {error}") from error
        return digests_from_sums(self._sums.numpy().view(np.uint64), self._lengths)
