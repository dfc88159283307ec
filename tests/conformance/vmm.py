"""What every implementation of virtual memory management must do.

An implementation's test file subclasses this, says how one is made, and how its memory is written and read.
"""

import os
import socket
import subprocess
import sys
from abc import ABC, abstractmethod

import pytest

from modelexpress.errors import DeviceError
from modelexpress.memory import Vmm
from modelexpress.memory.side_by_side import SideBySide


class VmmConformance(ABC):
    """Subclasses define the fixture `vmm`, `write` and `read`, and what a child runs to import memory."""

    importer: str
    """Module that is run with a socket's descriptor and a size: it maps what it is sent, and answers its 4 bytes."""

    @pytest.fixture
    def vmm(self) -> Vmm:
        raise NotImplementedError("an implementation's test file provides this")

    @abstractmethod
    def write(self, address: int, data: bytes) -> None:
        """Put bytes into memory that may be used."""

    @abstractmethod
    def read(self, address: int, nbytes: int) -> bytes:
        """Return bytes of memory that may be used."""

    def test_memory_is_where_it_was_put(self, vmm: Vmm) -> None:
        size = vmm.granularity
        start = vmm.reserve(3 * size)
        assert start % size == 0
        for number in (2, 0, 1):
            physical = vmm.create(size)
            vmm.map(start + number * size, size, physical)
            vmm.release(physical)  # the mapping keeps it
        vmm.allow(start, 3 * size)
        self.write(start + size - 2, b"across")
        assert self.read(start + size - 2, 6) == b"across"
        for number in range(3):
            vmm.unmap(start + number * size, size)
        vmm.free(start, 3 * size)

    def test_one_memory_at_two_addresses(self, vmm: Vmm) -> None:
        size = vmm.granularity
        start = vmm.reserve(2 * size)
        physical = vmm.create(size)
        for place in (start, start + size):
            vmm.map(place, size, physical)
        vmm.allow(start, 2 * size)
        self.write(start + 100, b"shared")
        assert self.read(start + size + 100, 6) == b"shared"
        vmm.unmap(start, size)
        assert self.read(start + size + 100, 6) == b"shared"
        vmm.unmap(start + size, size)
        vmm.release(physical)
        vmm.free(start, 2 * size)

    def test_an_address_takes_other_memory_when_it_was_unmapped(self, vmm: Vmm) -> None:
        size = vmm.granularity
        start = vmm.reserve(size)
        for content in (b"first", b"second"):
            physical = vmm.create(size)
            vmm.map(start, size, physical)
            vmm.release(physical)
            vmm.allow(start, size)
            self.write(start, content)
            assert self.read(start, len(content)) == content
            vmm.unmap(start, size)
        vmm.free(start, size)

    def test_what_was_exported_outlives_its_mapping_and_its_name(self, vmm: Vmm) -> None:
        size = vmm.granularity
        start = vmm.reserve(size)
        physical = vmm.create(size)
        vmm.map(start, size, physical)
        vmm.allow(start, size)
        self.write(start, b"kept")
        descriptor = vmm.export(physical)
        vmm.release(physical)
        vmm.unmap(start, size)
        imported = vmm.import_physical(descriptor, size)
        os.close(descriptor)
        vmm.map(start, size, imported)
        vmm.release(imported)
        vmm.allow(start, size)
        assert self.read(start, 4) == b"kept"
        vmm.unmap(start, size)
        vmm.free(start, size)

    def test_another_process_sees_the_same_memory(self, vmm: Vmm) -> None:
        size = vmm.granularity
        start = vmm.reserve(size)
        physical = vmm.create(size)
        vmm.map(start, size, physical)
        vmm.allow(start, size)
        self.write(start, b"over")
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", self.importer, str(theirs.fileno()), str(size)]
        with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child:
            theirs.close()
            ours.settimeout(60)
            descriptor = vmm.export(physical)
            socket.send_fds(ours, [b"x"], [descriptor])
            os.close(descriptor)
            assert ours.recv(4) == b"over"
            assert child.wait(60) == 0
        vmm.unmap(start, size)
        vmm.release(physical)
        vmm.free(start, size)

    def test_what_is_no_shared_memory_is_refused(self, vmm: Vmm) -> None:
        with open(os.devnull) as file, pytest.raises(DeviceError):
            vmm.import_physical(file.fileno(), vmm.granularity)

    def test_sizes_are_rounded_up(self, vmm: Vmm) -> None:
        unit = vmm.granularity
        assert [vmm.rounded(n) for n in (0, 1, unit, unit + 1)] == [0, unit, unit, 2 * unit]

    # ---- side by side

    def test_a_range_fills_from_its_beginning(self, vmm: Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
        size = vmm.granularity
        monkeypatch.setattr("modelexpress.memory.side_by_side.GROUP_BYTES", 2 * size)
        before = self._descriptors(vmm)
        mapped = SideBySide(vmm, [(self._filled(vmm, number), size) for number in range(5)])
        seen = [mapped.ready]
        while mapped.ready < mapped.nbytes:
            mapped.advance()
            seen.append(mapped.ready)
            assert self.read(mapped.address + mapped.ready - 1, 1) == bytes([mapped.ready // size])
        assert seen == [0, 2 * size, 4 * size, 5 * size]
        mapped.advance()
        mapped.close()
        mapped.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_closing_in_the_middle_leaves_nothing_behind(self, vmm: Vmm, monkeypatch: pytest.MonkeyPatch) -> None:
        size = vmm.granularity
        monkeypatch.setattr("modelexpress.memory.side_by_side.GROUP_BYTES", size)
        before = self._descriptors(vmm)
        mapped = SideBySide(vmm, [(self._filled(vmm, number), size) for number in range(4)])
        mapped.advance()
        mapped.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_part_that_is_no_memory_fails_and_leaves_nothing_behind(self, vmm: Vmm) -> None:
        size = vmm.granularity
        before = self._descriptors(vmm)
        wrong = os.open(os.devnull, os.O_RDONLY)
        mapped = SideBySide(vmm, [(self._filled(vmm, 0), size), (wrong, size), (self._filled(vmm, 2), size)])
        with pytest.raises(DeviceError):
            mapped.advance()
        assert mapped.ready == 0
        mapped.close()
        assert len(os.listdir("/proc/self/fd")) == before

    def _descriptors(self, vmm: Vmm) -> int:
        """Return how many descriptors are open once everything that opens some for good was done."""
        os.close(self._filled(vmm, 0))
        return len(os.listdir("/proc/self/fd"))

    def _filled(self, vmm: Vmm, number: int) -> int:
        """Return a descriptor of memory of one page whose last byte is `number` + 1."""
        size = vmm.granularity
        start, physical = vmm.reserve(size), vmm.create(size)
        vmm.map(start, size, physical)
        vmm.allow(start, size)
        self.write(start + size - 1, bytes([number + 1]))
        vmm.unmap(start, size)
        vmm.free(start, size)
        descriptor = vmm.export(physical)
        vmm.release(physical)
        return descriptor
