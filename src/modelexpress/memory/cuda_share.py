"""Sharing device memory with other processes of the host: what is handed over, and how it is mapped there."""

import os
from contextlib import ExitStack
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_driver import IPC_HANDLE_BYTES, driver
from modelexpress.memory.cuda_ipc import opened
from modelexpress.memory.cuda_vmm import MappedSideBySide, export_descriptor
from modelexpress.memory.region import Region

_MOST_ALLOCATIONS = 1 << 16
Bytes = Annotated[int, Field(gt=0, lt=1 << 47)]


class IpcShare(BaseModel):
    """A region that is one allocation of cudaMalloc: its IPC handle in hex digits."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kind: Literal["ipc"] = "ipc"
    handle: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * IPC_HANDLE_BYTES}}}$")]


class VmmShare(BaseModel):
    """A region of physical allocations side by side, in bytes each; a file descriptor of each comes along."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    kind: Literal["vmm"] = "vmm"
    nbytes: Annotated[list[Bytes], Field(min_length=1, max_length=_MOST_ALLOCATIONS)]


def share(region: Region) -> tuple[IpcShare | VmmShare, list[int]]:
    """Return how a region of device memory is handed over, and the descriptors that go along, for the caller to close.

    Raises:
        DeviceError: It cannot be shared; no descriptor is left open.
    """
    if driver().is_ipc_capable(region.address):
        return IpcShare(handle=driver().export_ipc(region.address).hex()), []
    sizes: list[int] = []
    with ExitStack() as undo:
        descriptors: list[int] = []
        position = region.address
        while position < region.address + region.nbytes:
            base, nbytes = driver().allocation(position)
            descriptors.append(export_descriptor(driver(), base))
            undo.callback(os.close, descriptors[-1])
            sizes.append(nbytes)
            position = base + nbytes
        undo.pop_all()
    return VmmShare(nbytes=sizes), descriptors


class MappedDeviceRegion:
    """A region of another process's device memory, mapped to be read by a device of this one.

    Args:
        shared: As the source handed it over.
        descriptors: The file descriptors that came along; they may be closed afterwards.
        nbytes: Size of the region.
        device: The device that reads.

    Raises:
        DeviceError: It cannot be mapped; nothing is left behind.
    """

    def __init__(self, shared: IpcShare | VmmShare, descriptors: list[int], nbytes: int, device: int) -> None:
        self.nbytes = nbytes
        self._exit = ExitStack()
        with ExitStack() as undo, driver().on(device):
            if isinstance(shared, IpcShare):
                self.address = undo.enter_context(opened(bytes.fromhex(shared.handle), device))
            else:
                if len(descriptors) != len(shared.nbytes) or sum(shared.nbytes) != nbytes:
                    raise DeviceError("the source's allocations do not make up its region")
                mapped = MappedSideBySide(driver(), list(zip(descriptors, shared.nbytes, strict=True)), device)
                undo.callback(mapped.close)
                self.address = mapped.address
            self._exit = undo.pop_all()

    def close(self) -> None:
        """Give the mapping back; no copy may be under way. Closing twice is allowed."""
        self._exit.close()
