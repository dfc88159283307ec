"""Real sources and targets of `nixl` in the memory of GPUs: processes that see one of them, or none."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from modelexpress.errors import TransportError
from modelexpress.memory import Region
from modelexpress.transport import Export, NixlTransport, Run
from tests.support.children import Child, say
from tests.support.transport_source import TOKEN

STALL_SECONDS = 2.0


def content(number: int, nbytes: int, generation: int = 0) -> torch.Tensor:
    """Return the bytes of region `number` of every export of a generation, in host memory."""
    generator = torch.Generator().manual_seed(1000 * generation + number)
    return torch.randint(256, (nbytes,), dtype=torch.uint8, generator=generator)


def region_of(tensor: torch.Tensor) -> Region:
    """Return the region that a tensor is: the allocation under it, or its own bytes of host memory."""
    if tensor.device.type != "cuda":
        return Region(tensor.data_ptr(), tensor.nbytes)
    from modelexpress.memory.cuda_regions import regions_under

    (region,) = regions_under([(tensor.data_ptr(), tensor.nbytes)])
    return region


class NixlDeviceSource(Child):
    """A process that exports tensors from the one GPU that it sees, or from host memory.

    Args:
        visible: CUDA_VISIBLE_DEVICES of the process; empty: host memory.
        allocator: PYTORCH_CUDA_ALLOC_CONF of the process.
    """

    def __init__(self, visible: str, allocator: str = "") -> None:
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        if allocator:
            environment |= {"PYTORCH_CUDA_ALLOC_CONF": allocator, "PYTORCH_ALLOC_CONF": allocator}
        role = "source" if visible else "host-source"
        super().__init__("tests.support.nixl_device_processes", role, environment=environment)

    def ask(self, command: str, *arguments: Any) -> Any:
        """Let the process execute a command, and return its answer."""
        self.tell(json.dumps([command, *arguments]))
        return self._said()

    def export(self, sizes: Sequence[int], generation: int = 0) -> tuple[bytes, list[tuple[int, int]]]:
        """Export tensors of `sizes` bytes; return the descriptor, and the region and offset of each tensor."""
        descriptor, places = self.ask("export", list(sizes), generation)
        return descriptor.encode(), [(region, offset) for region, offset in places]

    def _said(self) -> Any:
        # Libraries may print there, too.
        while not (line := self.line()).startswith("="):
            assert line or self.process.poll() is None, f"the source ended with status {self.process.wait(20)}"
        return json.loads(line[1:])


class NixlDeviceTarget(Child):
    """A process that reads tensors into the one GPU that it sees, checks them, and ends."""

    def __init__(
        self, visible: str, descriptor: bytes, places: Sequence[tuple[int, int]], sizes: Sequence[int]
    ) -> None:
        options = [descriptor.decode(), json.dumps(places), json.dumps(sizes)]
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        super().__init__("tests.support.nixl_device_processes", "target", *options, environment=environment)

    def result(self) -> str:
        """Return what came of it when the process has ended: "equal", or what went wrong."""
        assert self.process.stdout is not None
        said = [line[1:].strip() for line in self.process.stdout if line.startswith("=")]
        status = self.process.wait(60)
        return said[-1] if said else f"it ended with status {status}"


class _Source:
    """The commands, in the process of the source."""

    def __init__(self, transport: NixlTransport, place: str) -> None:
        self._transport = transport
        self._place = place
        self._export: Export | None = None
        self._tensors: list[torch.Tensor] = []

    def export(self, sizes: list[int], generation: int) -> tuple[str, list[tuple[int, int]]]:
        self._tensors = [content(n, size, generation).to(self._place) for n, size in enumerate(sizes)]
        self.synchronise()
        under = [region_of(tensor) for tensor in self._tensors]
        regions = sorted(set(under), key=lambda region: region.address)
        self._export = self._transport.export(regions)
        self._export.grant(TOKEN)
        places = [
            (regions.index(region), tensor.data_ptr() - region.address)
            for region, tensor in zip(under, self._tensors, strict=True)
        ]
        return self._export.descriptor.decode(), places

    def revoke(self) -> None:
        assert self._export is not None
        self._export.revoke(TOKEN)

    def close(self) -> None:
        """Withdraw the export and free its memory."""
        assert self._export is not None
        self._export.close()
        self._tensors.clear()
        torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def synchronise(self) -> None:
        if self._place == "cuda":
            torch.cuda.synchronize()


def _serve(place: str) -> None:
    with NixlTransport(without_cards=True, stall_timeout=STALL_SECONDS) as transport:
        source = _Source(transport, place)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            action: Callable[..., Any] = getattr(source, command)
            say("=" + json.dumps(action(*arguments)))


def _fetch(descriptor: str, places: list[tuple[int, int]], sizes: list[int]) -> str:
    tensors = [torch.zeros(size, dtype=torch.uint8, device="cuda") for size in sizes]
    torch.cuda.synchronize()
    runs = [
        Run(region, offset, tensor.data_ptr(), tensor.nbytes)
        for (region, offset), tensor in zip(places, tensors, strict=True)
    ]
    try:
        with (
            NixlTransport(without_cards=True, stall_timeout=STALL_SECONDS) as transport,
            transport.open(descriptor.encode(), TOKEN, 0) as reader,
        ):
            reader.read(runs).wait(30)
    except TransportError as error:
        return f"{type(error).__name__}: {error}"
    wrong = [n for n, tensor in enumerate(tensors) if not torch.equal(tensor.cpu(), content(n, sizes[n]))]
    return f"tensors {wrong} are wrong" if wrong else "equal"


def main() -> None:
    """Be a source until standard input ends, or a target until it has read."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["source", "host-source", "target"])
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    if given.role == "target":
        descriptor, places, sizes = given.options
        say("=" + _fetch(descriptor, json.loads(places), json.loads(sizes)))
    else:
        _serve("cuda" if given.role == "source" else "cpu")


if __name__ == "__main__":
    main()
