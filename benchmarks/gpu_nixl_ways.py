"""The ways that `benchmarks.gpu_nixl` compares: by the transport `nixl`, and by NIXL's own API, on the same tensors."""

import base64
import importlib
import importlib.util
import itertools
import json
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.shapes import Shapes
from modelexpress.errors import TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport import NixlTransport, Reader, Run, Transfer
from modelexpress.transport.nixl_agent import shared_agent
from modelexpress.transport.nixl_memory import Span, united

TOKEN = "benchmark"
BATCH_BYTES = 1 << 30
WINDOW = 3
"""As much and as many as a load of a GPU has on their way."""
Place = tuple[int, int]
"""Address and bytes."""
Found = dict[str, Any]


def seconds(action: Callable[[], Any]) -> float:
    """Return how long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Way(ABC):
    """One side of one way: a process that holds the tensors.

    Args:
        shapes: Of the tensors; all are bfloat16.
        place: "cuda" or "cpu".
    """

    arena = False

    def __init__(self, shapes: Shapes, place: str) -> None:
        self.place = place
        self.device = 0 if place == "cuda" else None
        self.tensors = self._allocate(shapes)
        self.nbytes = sum(nbytes for _, nbytes in self.places())
        self._synchronise()

    @abstractmethod
    def offer(self, folder: Path) -> Found:
        """Be the source: leave what a target needs in a folder, and return what was measured."""

    @abstractmethod
    def fetch(self, folder: Path, rounds: int) -> Found:
        """Be the target, and return what was measured."""

    def places(self) -> list[Place]:
        """Return where the tensors are."""
        return [(tensor.data_ptr(), 2 * tensor.numel()) for tensor in self.tensors]

    def fill(self) -> None:
        """Write what `check` compares with."""
        for number, tensor in enumerate(self.tensors):
            self._random(number, tensor)
        self._synchronise()

    def check(self) -> None:
        """Compare every byte with what the source wrote."""
        for number, tensor in enumerate(self.tensors):
            expected = torch.empty_like(tensor)
            self._random(number, expected)
            assert torch.equal(tensor.view(torch.int16), expected.view(torch.int16)), f"tensor {number} is wrong"

    def free_mib(self) -> float | None:
        """Return how much memory of the GPU is free, but for what torch keeps for later."""
        if self.device is None:
            return None
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0] / 2**20

    def _allocate(self, shapes: Shapes) -> list[torch.Tensor]:
        if not self.arena:
            return [torch.zeros(shape, dtype=torch.bfloat16, device=self.place) for shape in shapes.values()]
        sizes = [-(-2 * torch.Size(shape).numel() // 512) * 256 for shape in shapes.values()]
        self.flat = torch.zeros(sum(sizes), dtype=torch.bfloat16, device=self.place)
        starts = itertools.accumulate(sizes[:-1], initial=0)
        return [
            self.flat[start : start + torch.Size(shape).numel()].view(shape)
            for start, shape in zip(starts, shapes.values(), strict=True)
        ]

    def _random(self, number: int, tensor: torch.Tensor) -> None:
        generator = torch.Generator(self.place).manual_seed(number)
        tensor.view(torch.int16).random_(-(1 << 15), 1 << 15, generator=generator)

    def _synchronise(self) -> None:
        if self.device is not None:
            torch.cuda.synchronize()


class Ours(Way):
    """By the transport: as a publication offers a model, and as a load reads it."""

    def offer(self, folder: Path) -> Found:
        self.fill()
        started = seconds(shared_agent)
        regions = self._regions()
        self.transport = NixlTransport(without_cards=True)
        began = time.perf_counter()
        export = self.transport.export(regions)
        register = time.perf_counter() - began
        export.grant(TOKEN)
        starts = [region.address for region in regions]
        places = []
        for address, nbytes in self.places():
            number = bisect_right(starts, address) - 1
            places.append((number, address - starts[number], nbytes))
        (folder / "offer.json").write_text(json.dumps({"descriptor": export.descriptor.decode(), "places": places}))
        return {"agent": started, "register": register, "regions": len(regions)}

    def fetch(self, folder: Path, rounds: int) -> Found:
        offer = json.loads((folder / "offer.json").read_text())
        free = self.free_mib()
        agent = seconds(shared_agent)
        runs = list(self._runs(offer["places"]))
        with NixlTransport(without_cards=True) as transport:
            began = time.perf_counter()
            with transport.open(offer["descriptor"].encode(), TOKEN, self.device) as reader:
                opened = time.perf_counter() - began
                first = seconds(lambda: read(reader, runs))
                self._synchronise()
                self.check()
                took = [seconds(lambda: read(reader, runs)) for _ in range(rounds)]
        now = self.free_mib()
        extra = None if free is None or now is None else free - now
        self.check()
        register, joined, regions = self._registration()
        times = {"agent": agent, "open": opened, "first": first, "rounds": took}
        counts = {"regions": regions, "runs": len(runs), "nbytes": self.nbytes, "extra_mib": extra}
        return {**times, **counts, "register": register, "joined": joined}

    def _registration(self) -> tuple[float, float | None, int]:
        """Return how long it takes to register the destinations, the same with neighbours joined, and how many.

        Joined ones are an experiment: None, where NIXL refuses them.
        """
        memory, spans = shared_agent().memory, [Span.of(region) for region in self._regions()]
        whole = seconds(lambda: memory.hold_all(spans))
        memory.let_go(*spans)
        joined = [Span(span.address, span.nbytes, self.device) for span in united(spans)]
        try:
            together = seconds(lambda: memory.hold_all(joined))
        except TransportUnavailable:
            return whole, None, len(spans)
        memory.let_go(*joined)
        return whole, together, len(spans)

    def _regions(self) -> list[Region]:
        if self.device is not None:
            from modelexpress.memory.cuda_regions import regions_under

            return regions_under(self.places())
        if self.arena:
            return [Region(self.flat.data_ptr(), 2 * self.flat.numel())]
        return [Region(*place) for place in sorted(self.places())]

    def _runs(self, places: Sequence[tuple[int, int, int]]) -> Iterator[Run]:
        """Yield what is to be read in the order of the source's memory; neighbours on both sides are one run."""
        last: Run | None = None
        own = zip(places, self.places(), strict=True)
        for (region, offset, nbytes), (address, _) in sorted(own):
            if (
                last is not None
                and (region, offset) == (last.region, last.offset + last.nbytes)
                and address == last.address + last.nbytes
                and last.nbytes + nbytes <= BATCH_BYTES
            ):
                last = Run(last.region, last.offset, last.address, last.nbytes + nbytes)
                continue
            if last is not None:
                yield last
            last = Run(region, offset, address, nbytes)
        if last is not None:
            yield last


def read(reader: Reader, runs: Sequence[Run]) -> None:
    """Read as a load does: a few batches at once."""
    travelling: deque[Transfer] = deque()
    for batch in _batches(runs):
        if len(travelling) == WINDOW:
            travelling.popleft().wait()
        travelling.append(reader.read(batch))
    for transfer in travelling:
        transfer.wait()


def _batches(runs: Sequence[Run]) -> Iterator[list[Run]]:
    batch: list[Run] = []
    nbytes = 0
    for run in runs:
        if batch and nbytes + run.nbytes > BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
        batch.append(run)
        nbytes += run.nbytes
    if batch:
        yield batch


class Theirs(Way):
    """By NIXL's own API: one transfer, asked for once and posted again and again."""

    def offer(self, folder: Path) -> Found:
        self.fill()
        started = seconds(lambda: self._start("source"))
        register = seconds(self._register)
        began = time.perf_counter()
        metadata = self.agent.get_agent_metadata()
        described = time.perf_counter() - began
        offer = {"metadata": base64.b64encode(metadata).decode(), "pieces": self._pieces()}
        (folder / "offer.json").write_text(json.dumps(offer))
        counts = {"regions": len(self._pieces()), "metadata_bytes": len(metadata)}
        return {"agent": started, "register": register, "describe": described, **counts}

    def fetch(self, folder: Path, rounds: int) -> Found:
        offer = json.loads((folder / "offer.json").read_text())
        free = self.free_mib()
        agent = seconds(lambda: self._start("target"))
        register = seconds(self._register)
        opened = seconds(lambda: self.agent.add_remote_agent(base64.b64decode(offer["metadata"])))
        local = self.agent.get_xfer_descs(self._pieces(), self._kind)
        remote = self.agent.get_xfer_descs([tuple(piece) for piece in offer["pieces"]], self._kind)
        handle = self.agent.initialize_xfer("READ", local, remote, "source")
        first = seconds(lambda: self._transfer(handle))
        self._synchronise()
        self.check()
        took = [seconds(lambda: self._transfer(handle)) for _ in range(rounds)]
        now = self.free_mib()
        extra = None if free is None or now is None else free - now
        self.check()
        handle.release()
        times = {"agent": agent, "open": opened, "first": first, "rounds": took, "register": register}
        return {**times, "regions": len(self._pieces()), "nbytes": self.nbytes, "extra_mib": extra}

    @property
    def _kind(self) -> str:
        return "DRAM" if self.device is None else "VRAM"

    def _start(self, name: str) -> None:
        api = importlib.import_module(f"{_package()}._api")
        self.agent = api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"]))

    def _register(self) -> None:
        self.agent.register_memory([(*piece, "") for piece in self._pieces()], self._kind)

    def _pieces(self) -> list[tuple[int, int, int]]:
        """Return what is registered, and read: address, bytes and device each."""
        return [(address, nbytes, self.device or 0) for address, nbytes in self.places()]

    def _transfer(self, handle: Any) -> None:
        state = self.agent.transfer(handle)
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        assert state == "DONE", state


class Block(Theirs):
    """All tensors in one block: one registration, one descriptor."""

    arena = True

    def _pieces(self) -> list[tuple[int, int, int]]:
        return [(self.flat.data_ptr(), 2 * self.flat.numel(), self.device or 0)]


class OursInArena(Ours):
    """All tensors in one allocation."""

    arena = True


def _package() -> str:
    return next(name for name in ("nixl_cu13", "nixl_cu12", "nixl") if importlib.util.find_spec(name))


WAYS: Mapping[str, type[Way]] = {"block": Block, "arena": OursInArena, "torch": Ours, "tensors": Theirs}
