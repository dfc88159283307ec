"""Host memory by memfd and mmap does what every virtual memory management must do."""

import errno
import mmap
import os
import resource
import socket
import sys

import pytest

from modelexpress.errors import DeviceError
from modelexpress.memory import Vmm, memory_view
from modelexpress.memory.host_vmm import HostVmm
from tests.conformance.vmm import VmmConformance


class TestHostVmm(VmmConformance):
    importer = "tests.conformance.test_vmm_host"

    @pytest.fixture(params=[mmap.PAGESIZE, 2 << 20])
    def vmm(self, request: pytest.FixtureRequest) -> Vmm:
        return HostVmm(request.param)

    def write(self, address: int, data: bytes) -> None:
        memory_view(address, len(data))[:] = data

    def read(self, address: int, nbytes: int) -> bytes:
        return bytes(memory_view(address, nbytes))

    def test_numbers_that_are_no_multiple_are_refused(self, vmm: Vmm) -> None:
        start = vmm.reserve(vmm.granularity)
        for refused in (vmm.reserve, vmm.create):
            for nbytes in (0, -vmm.granularity, vmm.granularity + 1):
                with pytest.raises(DeviceError, match="multiple of the granularity"):
                    refused(nbytes)
        with pytest.raises(DeviceError, match="multiple of the granularity"):
            vmm.allow(start + 1, vmm.granularity)
        vmm.free(start, vmm.granularity)
        with pytest.raises(DeviceError, match="no multiple of a page"):
            HostVmm(100)

    def test_physical_memory_is_mapped_as_a_whole(self, vmm: Vmm) -> None:
        start, physical = vmm.reserve(2 * vmm.granularity), vmm.create(2 * vmm.granularity)
        with pytest.raises(DeviceError, match="only as a whole"):
            vmm.map(start, vmm.granularity, physical)
        vmm.release(physical)
        vmm.free(start, 2 * vmm.granularity)

    def test_memory_that_its_sender_could_shrink_is_refused(self, vmm: Vmm) -> None:
        descriptor = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, vmm.granularity)
        with pytest.raises(DeviceError, match="keep their size"):
            vmm.import_physical(descriptor, vmm.granularity)
        os.close(descriptor)

    def test_more_addresses_than_there_are_cannot_be_had(self, vmm: Vmm) -> None:
        with pytest.raises(DeviceError, match=r"the kernel does not reserve .* Cannot allocate memory \(free memory"):
            vmm.reserve(1 << 62)

    @pytest.mark.parametrize(("number", "remedy"), [(errno.ENOMEM, "free memory"), (errno.ENFILE, "fs.file-max")])
    def test_a_host_that_has_no_more_says_what_helps(
        self, vmm: Vmm, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
    ) -> None:
        def refuse(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        physical = vmm.create(vmm.granularity)
        monkeypatch.setattr(os, "memfd_create", refuse)
        monkeypatch.setattr(os, "dup", refuse)
        with pytest.raises(DeviceError, match=f"the kernel does not make {vmm.granularity} bytes: .*{remedy}"):
            vmm.create(vmm.granularity)
        with pytest.raises(DeviceError, match=f"the kernel does not export memory: .*{remedy}"):
            vmm.export(physical)
        with pytest.raises(DeviceError, match=f"the kernel does not import memory: .*{remedy}"):
            vmm.import_physical(physical, vmm.granularity)
        vmm.release(physical)

    def test_memory_that_may_not_be_so_large_leaves_nothing_behind(self, vmm: Vmm) -> None:
        usual, before = resource.getrlimit(resource.RLIMIT_FSIZE), len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (vmm.granularity, usual[1]))
        try:
            with pytest.raises(DeviceError, match=r"the kernel does not make .*File too large \(raise `ulimit -f`\)"):
                vmm.create(2 * vmm.granularity)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        assert len(os.listdir("/proc/self/fd")) == before


def main() -> None:
    """Map what arrives on a socket, and answer its first bytes."""
    vmm, size = HostVmm(), int(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        start = vmm.reserve(size)
        vmm.map(start, size, vmm.import_physical(descriptors[0], size))
        vmm.allow(start, size)
        sock.sendall(bytes(memory_view(start, 4)))


if __name__ == "__main__":
    main()
