"""Sharing device memory with other processes of the host: what is handed over, and how it is mapped there."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_ipc import close_shared, open_shared
from modelexpress.memory.cuda_vmm import CudaVmm, physical_at
from modelexpress.memory.region import Region
from modelexpress.memory.side_by_side import SideBySide


@dataclass(frozen=True, slots=True)
class IpcShare:
    """A region that is one allocation of cudaMalloc: its IPC handle, of `IPC_HANDLE_BYTES`."""

    handle: bytes


@dataclass(frozen=True, slots=True)
class VmmShare:
    """A region of physical allocations side by side, in bytes each; a file descriptor of each comes along."""

    nbytes: tuple[int, ...]


Share = IpcShare | VmmShare


def share(region: Region) -> tuple[Share, list[int]]:
    """Return how a region of device memory is handed over, and the descriptors that go along, for the caller to close.

    Raises:
        DeviceError: It cannot be shared; no descriptor is left open.
    """
    with driver().on(region.device or 0):  # the thread that asks may never have used a device
        return _share(region)


def _share(region: Region) -> tuple[Share, list[int]]:
    handle = driver().export_ipc(region.address)
    if handle is not None and driver().range(region.address) == (region.address, region.nbytes):
        return IpcShare(handle), []
    vmm = CudaVmm(region.device or 0)
    sizes: list[int] = []
    descriptors: list[int] = []
    with ExitStack() as undo:
        position, end = region.address, region.address + region.nbytes
        while position < end:
            base, nbytes = driver().range(position)
            descriptors.append(_export(vmm, base))
            undo.callback(os.close, descriptors[-1])
            sizes.append(nbytes)
            position = base + nbytes
        undo.pop_all()
    return VmmShare(tuple(sizes)), descriptors


class MappedRegion(Protocol):
    """A region of another process's device memory, as far as it is mapped here.

    The device that reads has its context current when one of the methods is called; one thread at a time calls them.
    """

    @property
    def nbytes(self) -> int:
        """Size of the region."""

    @property
    def address(self) -> int:
        """Of its first byte here; known once anything is `ready`."""

    @property
    def ready(self) -> int:
        """Bytes from the beginning that can be read."""

    def advance(self) -> None:
        """Map some more of it.

        Raises:
            DeviceError: It cannot be mapped.
        """

    def close(self) -> None:
        """Unmap it; no copy is under way. Closing twice is allowed.

        Raises:
            DeviceError: The driver refused.
        """


def mapped_region(shared: Share, descriptors: Sequence[int], nbytes: int, device: int) -> MappedRegion:
    """Return a region of another process of which nothing is mapped yet.

    Args:
        shared: As the source handed it over.
        descriptors: The file descriptors that came along; they are owned by the region from now on.
        nbytes: Size of the region.
        device: The device that reads.

    Raises:
        DeviceError: It cannot be mapped; the descriptors are closed.
    """
    if isinstance(shared, IpcShare):
        return _IpcRegion(shared.handle, nbytes, device)
    if len(descriptors) != len(shared.nbytes) or sum(shared.nbytes) != nbytes:
        for descriptor in descriptors:
            os.close(descriptor)
        raise DeviceError("the source's allocations do not make up its region")
    return SideBySide(CudaVmm(device), list(zip(descriptors, shared.nbytes, strict=True)))


class _IpcRegion:
    """A region that is one allocation of cudaMalloc."""

    def __init__(self, handle: bytes, nbytes: int, device: int) -> None:
        self.nbytes = nbytes
        self.address = 0
        self.ready = 0
        self._handle = handle
        self._device = device

    def advance(self) -> None:
        if self.ready:
            return
        self.address = open_shared(self._handle, self._device)
        self.ready = self.nbytes
        if (found := driver().known_bytes(self.address)) is not None and found < self.nbytes:
            raise DeviceError(f"the source's allocation has {found} bytes, and should have {self.nbytes}")

    def close(self) -> None:
        if self.ready:
            self.ready = 0
            close_shared(self._handle, self._device)


def _export(vmm: CudaVmm, address: int) -> int:
    physical = physical_at(address)
    try:
        return vmm.export(physical)
    finally:
        vmm.release(physical)
