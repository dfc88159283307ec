"""Sources for tests of `local` with regions of every kind: a process that exports them without torch."""

import ctypes
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from modelexpress.memory import HostArena, Region
from modelexpress.memory.cuda_copy import Stream, allocate_device
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_vmm import CudaVmm
from modelexpress.transport import Export, LocalTransport
from tests.support.children import Child, say
from tests.support.transport_source import TOKEN, content

MIB = 1 << 20
PART = 2 * MIB


class Kind(NamedTuple):
    """A region: `ipc` is of cudaMalloc, `vmm` physical allocations of `PART` bytes side by side, `host` an arena."""

    name: str
    nbytes: int


class DeviceExport(Child):
    """A process that exports regions of the first device that it sees, filled with `content`.

    Args:
        kinds: The regions.
        visible: CUDA_VISIBLE_DEVICES of the process.
    """

    def __init__(self, kinds: Sequence[Kind], visible: str = "0") -> None:
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        super().__init__("tests.support.device_export", json.dumps(kinds), environment=environment)
        self.descriptor: bytes = self.answer().encode()

    def ask(self, command: str) -> None:
        """Let it `revoke` the token or `close` the export, and return when that is done."""
        self.tell(command)
        self.answer()


def copy_to_device(address: int, data: bytes) -> None:
    """Put bytes into memory of the current device."""
    buffer = ctypes.create_string_buffer(data, len(data))
    stream = Stream()
    stream.copy(address, ctypes.addressof(buffer), len(data))
    stream.finish()
    stream.close()


def copy_from_device(address: int, nbytes: int) -> bytes:
    """Return bytes of memory of the current device."""
    buffer = ctypes.create_string_buffer(nbytes)
    stream = Stream()
    stream.copy(ctypes.addressof(buffer), address, nbytes)
    stream.finish()
    stream.close()
    return buffer.raw


def _region(kind: Kind, data: bytes, keep: list[object]) -> Region:
    if kind.name == "host":
        arena = HostArena(kind.nbytes)
        arena.region.view()[:] = data
        keep.append(arena)
        return arena.region
    address = allocate_device(kind.nbytes) if kind.name == "ipc" else _virtual(kind.nbytes)
    copy_to_device(address, data)
    return Region(address, kind.nbytes, device=0)


def _virtual(nbytes: int) -> int:
    vmm = CudaVmm(0)
    start = vmm.reserve(nbytes)
    for offset in range(0, nbytes, PART):
        physical = vmm.create(PART)
        vmm.map(start + offset, PART, physical)
        vmm.release(physical)
    vmm.allow(start, nbytes)
    return start


def main(kinds: str) -> None:
    """Export, print the descriptor, and do what standard input says until it ends."""
    keep: list[object] = []
    with LocalTransport() as transport, driver().on(0):
        regions = [_region(Kind(*kind), content(n, kind[1]), keep) for n, kind in enumerate(json.loads(kinds))]
        export: Export = transport.export(regions)
        export.grant(TOKEN)
        say(json.dumps(export.descriptor.decode()))
        actions: dict[str, Callable[[], Any]] = {"revoke": lambda: export.revoke(TOKEN), "close": export.close}
        for line in sys.stdin:
            actions[line.strip()]()
            say("null")


if __name__ == "__main__":
    main(sys.argv[1])
