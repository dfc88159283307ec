"""What `nixl` needs of a GPU, for machines without one: host memory stands for the memory of device 0."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from modelexpress.errors import DeviceError
from modelexpress.memory import Region, cuda_copy, cuda_driver, cuda_regions
from modelexpress.memory.cuda_driver import Allocation
from modelexpress.transport import Export, NixlTransport, Reader, nixl_agent
from modelexpress.transport.nixl_agent import Agent
from modelexpress.transport.nixl_library import NixlLibrary, load

ALLOCATION = 1 << 18
"""Every address of the double lies in an allocation of so many bytes, which starts at a multiple of them."""


class CudaDouble:
    """The calls of the driver that `nixl` makes, and how often; only device 0 is there."""

    def __init__(self) -> None:
        self.current: list[int] = []
        self.settled = 0
        self.asked = 0
        self.kept: list[ctypes.Array[ctypes.c_char]] = []

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make a device current for a block."""
        if device:
            raise DeviceError(f"cuDeviceGet: invalid device ordinal {device} (CUDA error 101)")
        self.current.append(device)
        yield
        self.current.pop()

    def call(self, name: str, *_: object) -> None:
        """Do what is done when something went wrong."""
        assert name == "cuCtxSynchronize"
        assert self.current
        self.settled += 1

    def allocation(self, address: int) -> Allocation:
        """Return the allocation that an address lies in."""
        self.asked += 1
        return Allocation(address // ALLOCATION * ALLOCATION, ALLOCATION, 0, True)

    def allocate(self, nbytes: int) -> int:
        """Return the address of memory that stays."""
        self.kept.append(ctypes.create_string_buffer(nbytes))
        return ctypes.addressof(self.kept[-1])


class _NativeDouble:
    """NIXL's module, which takes the memory of GPUs for host memory."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self.VRAM_SEG = native.DRAM_SEG

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)


def install(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    """Put the doubles in the place of the driver, and of NIXL for agents that are made from now on."""
    cuda, library = CudaDouble(), load()
    double = NixlLibrary(_NativeDouble(library.native), library.errors)
    for module in (cuda_driver, cuda_regions):
        monkeypatch.setattr(module, "driver", lambda: cuda)
    monkeypatch.setattr(cuda_copy, "allocate_device", cuda.allocate)
    monkeypatch.setattr(nixl_agent, "load", lambda: double)
    return cuda


class DeviceNixl(NixlTransport):
    """Takes every region, and every destination, for memory of device 0.

    Args:
        agent: Made after `install`.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__(without_cards=True, stall_timeout=1.0, agent=self._usable)
        self.agent = agent

    def _usable(self) -> Agent:
        # One that had to be ended is replaced, as that of a process is.
        if not self.agent.native.usable:
            self.agent = Agent()
        return self.agent

    def export(self, regions: Sequence[Region]) -> Export:
        return super().export([replace(region, descriptor=None, device=0) for region in regions])

    def open(self, descriptor: bytes, token: str, device: int | None = None) -> Reader:
        return super().open(descriptor, token, 0)
