"""Digests of device memory, on the device: one kernel launch for any number of ranges, beside other work.

Needs torch with CUDA and Triton (`pip install modelexpress[cuda]`). Nothing imports this module until a device's
memory is to be digested.

No copy engine takes part: tables and results would queue behind the copies that are to be checked. The kernels read
the tables from page-locked host memory and store the sums there.
"""

# mypy: untyped-calls-exclude=torch

import subprocess
from collections.abc import Iterable
from typing import Final

import numpy as np
import torch
from triton.errors import TritonError

from modelexpress.errors import DeviceError
from modelexpress.transfer import digest_kernel
from modelexpress.transfer.digest import Column, check_ranges, columns, digest
from modelexpress.transfer.digest_kernel import Shape, hand_over
from modelexpress.transfer.digest_numpy import LINE_WORDS, keys
from modelexpress.transfer.digest_tiles import Tiles, cut_tiles, digests_from_sums

SLOTS: Final = 4
"""Calls that can be under way at once without page-locked memory being allocated for them."""
SLOT_RANGES: Final = 4096
"""Ranges that fit one slot: a batch of a pull has no more pieces."""
SLOT_TILES: Final = 8192
"""Tiles that fit one: a gigabyte, and the rest of each range."""

# CUDA's own; the kernel's compiler; the C compiler that builds its launcher; the folder of Triton's cache.
_FAILURES: Final = (RuntimeError, TritonError, subprocess.SubprocessError, OSError)
_BLOCK: Final = 1024
_PRIORITY: Final = -5
"""The highest that a stream can have. Copies from memory that was imported by descriptor share the queue of kernels:
beside them a check of 512 MiB takes 0.6 ms like this, and 1.3 ms with the same priority as they have."""


class DeviceDigests:
    """Computes digests of a device's memory on a stream of its own.

    The constructor loads the kernels and checks them against the host: the first time on a machine this compiles for
    some seconds, later it takes milliseconds. One thread at a time may enqueue; any other may wait for what it gets.

    Args:
        device: Ordinal of the device, as torch counts in this process.
        shape: How the kernel divides its work; None: `digest_kernel.DEFAULT_SHAPE`.

    Raises:
        DeviceError: There is no such device, or the kernel does not compile or computes wrong digests there.

    Example:
        >>> digests = DeviceDigests(0)  # doctest: +SKIP
        >>> pending = digests.enqueue(addresses, lengths, after=[copies])  # doctest: +SKIP
        >>> pending.result()  # doctest: +SKIP
    """

    def __init__(self, device: int, shape: Shape | None = None) -> None:
        self._device = torch.device("cuda", device)
        self._shape = shape or digest_kernel.DEFAULT_SHAPE
        words = keys(0, LINE_WORDS * (self._shape.lines + 1))  # the kernel takes a line; the rest is for `_check`
        try:
            self._stream = torch.cuda.Stream(self._device, priority=_PRIORITY)
            with torch.cuda.stream(self._stream):
                self._keys = torch.from_numpy(words.view(np.int64)).to(self._device)
                slots = [_Slot(SLOT_RANGES, SLOT_TILES, self._device) for _ in range(SLOTS)]
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise DeviceError(f"CUDA device {device} cannot be used for digests: {error}") from error
        self._slots = _Slots(slots)
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
                slot = self._slots.take(tiles, self._device)
                self._launch(tiles, slot)
                slot.finished.record(self._stream)
        except _FAILURES as error:
            raise DeviceError(f"digests of {len(lengths)} ranges could not start: {error}") from error
        return PendingDigests(lengths, slot, self._slots)

    def _launch(self, tiles: Tiles, slot: "_Slot") -> None:
        """Enqueue what turns tables into sums, which will be in the slot's host memory."""
        slot.fill(tiles)
        if len(tiles.owners):
            digest_kernel.launch(self._shape, len(tiles.owners), slot.ranges, slot.owners, self._keys, slot.sums)
        if count := 2 * len(tiles.ranges):
            hand_over[(-(-count // _BLOCK),)](slot.sums, slot.found, count, block=_BLOCK)

    def _stream_of(self, handle: int) -> torch.cuda.Stream:
        if handle == 0:  # for torch.cuda.ExternalStream, 0 is a new stream
            return torch.cuda.default_stream(self._device)
        return torch.cuda.ExternalStream(handle, device=self._device)

    def _check(self, expected: int) -> None:
        """Compare the digest of the keys, by both ways of loading, with the host's.

        A kernel that a compiler got wrong would call good bytes damaged. Twice, because the second result depends on
        what the first one left behind.
        """
        nbytes = np.array([self._keys.nbytes], np.uint64)
        address = np.array([self._keys.data_ptr()], np.uint64)
        for _ in range(2):
            if self.enqueue(address, nbytes).result().tolist() != [expected]:
                raise DeviceError(f"the digest kernel computes wrong digests on {self._device}: use the host's digests")


class PendingDigests:
    """Digests on their way from a device: what `DeviceDigests.enqueue` returns. For one thread at a time."""

    def __init__(self, lengths: Column, slot: "_Slot", slots: "_Slots") -> None:
        self._lengths = lengths
        self._slot = slot
        self._slots = slots
        self._digests: Column | None = None

    def done(self) -> bool:
        """Return whether `result` would return at once.

        Raises:
            DeviceError: CUDA failed meanwhile.
        """
        try:
            return self._digests is not None or bool(self._slot.finished.query())
        except RuntimeError as error:
            raise DeviceError(f"digests of {len(self._lengths)} ranges failed: {error}") from error

    def result(self) -> Column:
        """Wait, and return one digest per range, as uint64.

        Raises:
            DeviceError: CUDA failed meanwhile, for instance because a range is not mapped.
        """
        if self._digests is None:
            try:
                self._slot.finished.synchronize()
            except RuntimeError as error:
                raise DeviceError(f"digests of {len(self._lengths)} ranges failed: {error}") from error
            self._digests = digests_from_sums(self._slot.sums_found(len(self._lengths)), self._lengths)
            self._slots.give_back(self._slot)
        return self._digests


class _Slot:
    """The memory of one call: tables and results on the host, page-locked, and the sums on the device, zeros between.

    To be made while the stream that will use it is torch's current one.
    """

    def __init__(self, ranges: int, tiles: int, device: torch.device) -> None:
        self.ranges = torch.empty((ranges, 3), dtype=torch.int64, pin_memory=True)
        self.owners = torch.empty(tiles, dtype=torch.int32, pin_memory=True)
        self.found = torch.empty((ranges, 2), dtype=torch.int64, pin_memory=True)
        self.sums = torch.zeros((ranges, 2), dtype=torch.int64, device=device)
        self.finished = torch.cuda.Event(blocking=True)  # waiting sleeps: the core is needed elsewhere
        self._tables = self.ranges.numpy(), self.owners.numpy()
        self._found = self.found.numpy().view(np.uint64)

    def fits(self, tiles: Tiles) -> bool:
        """Return whether the tables of a call have room here."""
        return len(tiles.ranges) <= len(self.ranges) and len(tiles.owners) <= len(self.owners)

    def fill(self, tiles: Tiles) -> None:
        """Take the tables of a call."""
        ranges, owners = self._tables
        ranges[: len(tiles.ranges)] = tiles.ranges
        owners[: len(tiles.owners)] = tiles.owners

    def sums_found(self, count: int) -> Column:
        """Return the sums of the first ranges; they are overwritten by the next call that has this slot."""
        found: Column = self._found[:count]
        return found


class _Slots:
    """The slots of one stream: those at rest, and those that the device may still write to."""

    def __init__(self, slots: Iterable[_Slot]) -> None:
        self._idle = list(slots)
        # torch knows nothing of what the kernels do there: it would hand the memory of a slot that nobody holds on.
        self._busy: set[_Slot] = set()

    def take(self, tiles: Tiles, device: torch.device) -> _Slot:
        """Return a slot with room for a call."""
        try:
            slot = self._idle.pop()
        except IndexError:
            slot = None
        if slot is not None and not slot.fits(tiles):
            self._idle.append(slot)
            slot = None
        if slot is None:
            slot = _Slot(max(SLOT_RANGES, len(tiles.ranges)), max(SLOT_TILES, len(tiles.owners)), device)
        self._busy.add(slot)
        return slot

    def give_back(self, slot: _Slot) -> None:
        """Take a slot back with which the device is done; only some are kept, and no large ones."""
        self._busy.discard(slot)
        if len(self._idle) < SLOTS and len(slot.ranges) == SLOT_RANGES and len(slot.owners) == SLOT_TILES:
            self._idle.append(slot)
