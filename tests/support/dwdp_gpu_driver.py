"""A double of the CUDA driver beneath shared experts: its memory is the host's, its streams are threads.

What is called goes through the types of the real functions, so that an argument too many, or of the wrong kind, is
found on a machine without a GPU. The model computes on the host, in the caller: that is the default stream.
"""

import ctypes
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

from modelexpress.dwdp import cuda_machine, manager
from modelexpress.dwdp.host_machine import CallersStream, HostEvent, HostStream
from modelexpress.dwdp.streams import Stream
from modelexpress.errors import DeviceError
from modelexpress.memory import cuda_copy, cuda_vmm
from modelexpress.memory.cuda_signatures import SIGNATURES
from modelexpress.memory.host_vmm import HostVmm
from modelexpress.memory.vmm import Physical

INVALID_VALUE = 1
GRANULARITY = 64 << 10


class HostDriver:
    """One device.

    Args:
        strict: Whether a copy that crosses from one mapping into the next is refused, and batches are.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._vmm = HostVmm(GRANULARITY)
        self._numbers = itertools.count(1)
        self._streams: dict[int, Stream] = {0: CallersStream()}
        self._events: dict[int, HostEvent] = {}
        self._mapped: dict[int, int] = {}

        self.current = 0
        """Handle of the stream that torch computes on; 0: in the caller."""

    def foreign_stream(self) -> HostStream:
        """Return a stream of the device that somebody else has made."""
        stream = HostStream("foreign")
        self._streams[next(self._numbers)] = stream
        return stream

    def compute_on(self, stream: HostStream) -> None:
        """Let a stream be torch's current one."""
        self.current = next(handle for handle, one in self._streams.items() if one is stream)

    def finish(self) -> None:
        """Wait for all streams of the device."""
        for stream in list(self._streams.values()):
            stream.finish()

    def has(self, name: str) -> bool:
        """Return whether it has a function: all that the package knows."""
        return name in SIGNATURES

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; an error is raised."""
        if status := self.status(name, *arguments):
            raise DeviceError(f"{name}: CUDA error {status}")

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function and return its status."""
        types = SIGNATURES[name]
        assert len(types) == len(arguments), f"{name} takes {len(types)} arguments, not {len(arguments)}"
        for kind, argument in zip(types, arguments, strict=True):
            kind.from_param(argument)
        return getattr(self, f"_{name}")(*arguments) or 0

    @contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make the device current."""
        assert device == 0
        yield

    def handle(self, device: int) -> int:
        """Return its name."""
        return device

    def attribute(self, device: int, number: int) -> int:
        """Return an attribute: it has none."""
        return 0

    def range(self, address: int) -> tuple[int, int]:
        """Return start and size of what an address lies in; memory of torch is one."""
        for start, nbytes in self._mapped.items():
            if start <= address < start + nbytes:
                return start, nbytes
        raise DeviceError("not mapped here")

    def _cuMemGetAllocationGranularity(self, found: Any, _properties: Any, _flags: int) -> None:  # noqa: N802
        found._obj.value = GRANULARITY

    def _cuMemAddressReserve(self, address: Any, nbytes: int, *_: int) -> None:  # noqa: N802
        address._obj.value = self._vmm.reserve(nbytes)

    def _cuMemAddressFree(self, address: int, nbytes: int) -> None:  # noqa: N802
        self._vmm.free(address, nbytes)

    def _cuMemCreate(self, handle: Any, nbytes: int, _properties: Any, _flags: int) -> None:  # noqa: N802
        handle._obj.value = self._vmm.create(nbytes)

    def _cuMemRelease(self, physical: Physical) -> None:  # noqa: N802
        self._vmm.release(physical)

    def _cuMemMap(self, address: int, nbytes: int, _offset: int, physical: Physical, _flags: int) -> None:  # noqa: N802
        self._vmm.map(address, nbytes, physical)
        self._mapped[address] = nbytes

    def _cuMemUnmap(self, address: int, nbytes: int) -> None:  # noqa: N802
        assert self._mapped.pop(address) == nbytes, "one mapping at a time is taken away"
        self._vmm.unmap(address, nbytes)

    def _cuMemSetAccess(self, address: int, nbytes: int, _access: Any, count: int) -> None:  # noqa: N802
        assert count == 1
        self._vmm.allow(address, nbytes)

    def _cuMemExportToShareableHandle(self, found: Any, physical: Physical, *_: int) -> None:  # noqa: N802
        found._obj.value = self._vmm.export(physical)

    def _cuMemImportFromShareableHandle(self, handle: Any, descriptor: int, _kind: int) -> None:  # noqa: N802
        handle._obj.value = self._vmm.import_physical(descriptor, os.fstat(descriptor).st_size)

    def _cuStreamCreate(self, handle: Any, flags: int) -> None:  # noqa: N802
        assert flags == 1, "it would wait for the default stream"
        handle._obj.value = next(self._numbers)
        self._streams[handle._obj.value] = HostStream()

    def _cuStreamDestroy_v2(self, handle: ctypes.c_void_p) -> None:  # noqa: N802
        self._streams.pop(handle.value or -1).close()

    def _cuStreamSynchronize(self, handle: ctypes.c_void_p) -> None:  # noqa: N802
        self._streams[handle.value or 0].finish()

    def _cuStreamWaitEvent(self, handle: ctypes.c_void_p, event: ctypes.c_void_p, _flags: int) -> None:  # noqa: N802
        self._streams[handle.value or 0].wait(self._events[event.value or -1])

    def _cuEventCreate(self, handle: Any, _flags: int) -> None:  # noqa: N802
        handle._obj.value = next(self._numbers)
        self._events[handle._obj.value] = HostEvent()

    def _cuEventDestroy_v2(self, event: ctypes.c_void_p) -> None:  # noqa: N802
        del self._events[event.value or -1]

    def _cuEventRecord(self, event: ctypes.c_void_p, handle: ctypes.c_void_p) -> None:  # noqa: N802
        self._streams[handle.value or 0].record(self._events[event.value or -1])

    def _cuEventElapsedTime(self, found: Any, first: ctypes.c_void_p, second: ctypes.c_void_p) -> None:  # noqa: N802
        start, end = (self._events[event.value or -1].mark for event in (first, second))
        assert start is not None
        assert end is not None
        found._obj.value = 1000 * (end.moment - start.moment)

    def _cuMemcpyAsync(self, destination: int, source: int, nbytes: int, handle: ctypes.c_void_p) -> int:  # noqa: N802
        if self._strict and any(self._crosses(start, nbytes) for start in (destination, source)):
            return INVALID_VALUE
        self._streams[handle.value or 0].copy_all([(destination, source, nbytes)])
        return 0

    def _cuMemcpyBatchAsync_v2(self, *arguments: Any) -> int:  # noqa: N802
        to, start, size, count, _attributes, _first, _kinds, handle = arguments
        if self._strict or not handle.value:
            return INVALID_VALUE
        self._streams[handle.value].copy_all(list(zip(to[:count], start[:count], size[:count], strict=True)))
        return 0

    def _crosses(self, start: int, nbytes: int) -> bool:
        try:
            base, size = self.range(start)
        except DeviceError:
            return False
        return start + nbytes > base + size


def install(*, strict: bool) -> HostDriver:
    """Let shared experts use the double in this process: models on the host are taken to be on device 0."""
    double = HostDriver(strict=strict)
    patched: tuple[Any, ...] = (cuda_copy, cuda_vmm, cuda_machine)
    for module in patched:
        module.driver = lambda: double
    patched_torch: Any = torch.cuda
    patched_torch.current_stream = lambda device: SimpleNamespace(cuda_stream=double.current)
    patched_torch.current_device = lambda: 0
    patched_torch.synchronize = lambda device: double.finish()
    patched_machine: Any = cuda_machine.CudaMachine
    patched_machine.here = lambda self: nullcontext()
    patched_manager: Any = manager
    patched_manager.machine_of = lambda model: cuda_machine.CudaMachine(0)
    return double
