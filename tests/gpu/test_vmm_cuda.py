"""CUDA's virtual memory management does what every one must do."""

import ctypes
import socket
import sys

import pytest

from modelexpress.errors import DeviceError
from modelexpress.memory import Vmm
from modelexpress.memory.cuda_copy import Stream
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_vmm import CudaVmm
from tests.conformance.vmm import VmmConformance


def has_device() -> bool:
    try:
        return driver().device_count() > 0
    except DeviceError:
        return False


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_device(), reason="no CUDA device")]


def copy(destination: int, source: int, nbytes: int) -> None:
    with driver().on(0):
        stream = Stream()
        stream.copy(destination, source, nbytes)
        stream.finish()
        stream.close()


def read(address: int, nbytes: int) -> bytes:
    buffer = ctypes.create_string_buffer(nbytes)
    copy(ctypes.addressof(buffer), address, nbytes)
    return buffer.raw


class TestCudaVmm(VmmConformance):
    importer = "tests.gpu.test_vmm_cuda"

    @pytest.fixture
    def vmm(self) -> Vmm:
        driver().context(0)
        return CudaVmm(0)

    def write(self, address: int, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        copy(address, ctypes.addressof(buffer), len(data))

    def read(self, address: int, nbytes: int) -> bytes:
        return read(address, nbytes)


def main() -> None:
    """Map what arrives on a socket, and answer its first bytes."""
    driver().context(0)
    vmm, size = CudaVmm(0), int(sys.argv[2])
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        start = vmm.reserve(size)
        vmm.map(start, size, vmm.import_physical(descriptors[0], size))
        vmm.allow(start, size)
        sock.sendall(read(start, 4))


if __name__ == "__main__":
    main()
