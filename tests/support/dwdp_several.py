"""Cases in which a model runs on several streams, or threads, one after the other or side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.dwdp.cuda_machine import CudaMachine
from modelexpress.dwdp.host_machine import HostEvent, HostStream
from modelexpress.dwdp.streams import Machine, Stream
from modelexpress.memory.host_vmm import HostVmm
from tests.support.dwdp_gpu_driver import install
from tests.support.dwdp_gpu_machines import LateHostMachine
from tests.support.dwdp_hostile import Hostile
from tests.support.dwdp_life import EXPERTS, Sharing
from tests.support.dwdp_models import cut, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank
from tests.support.dwdp_order import HIDDEN, INNER, LateExperts, Later

FORWARDS, STREAMS = 6, 3
LARGER = 40
"""Times the width, so that experts do not all fit into the first and last unit of a driver's memory."""


class Streams:
    """Streams that a model runs on, and which of them it is on at present; before it is used, none."""

    def __init__(self) -> None:
        self.all: Sequence[HostStream] = ()
        self.current = 0
        self.turned: Callable[[HostStream], object] = lambda stream: None
        self.delay: Callable[[], object] = lambda: None

    def enqueue(self, work: Callable[[], object]) -> None:
        """Let the present one do something, late."""
        if self.all:
            self.all[self.current].enqueue(self.delay)
            self.all[self.current].enqueue(work)
        else:
            work()

    def turn(self, to: int) -> None:
        """Go on with another one, which begins at once."""
        if self.all:
            self.current = to % len(self.all)
            self.turned(self.all[self.current])

    def join(self, others: Sequence[int]) -> None:
        """Let the present one wait for what others have got so far."""
        for other in others:
            if self.all:
                event = HostEvent()
                self.all[other % len(self.all)].record(event)
                self.all[self.current].wait(event)


class Block(nn.Module):
    """A layer that runs on streams in a certain manner.

    Args:
        inner: Width within an expert.
        streams: What it runs on.
        manner: between: on the stream that it is called on; within: the second half of its work on the next one; apart:
            its tokens in two halves on two streams, and nobody joins them before the layer ends.
    """

    def __init__(self, inner: int, streams: Streams, manner: str) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, EXPERTS)
        self.experts = LateExperts(inner)
        self.experts.enqueue = streams.enqueue
        self._streams, self._manner = streams, manner

    def forward(self, parts: Sequence[Later]) -> list[Later]:
        """Return two halves of tokens, later."""
        first, second = parts
        begun = self._streams.current
        if self._manner == "apart":  # both halves begin when the layer does
            self._streams.turn(begun + 1)
            self._streams.join([begun])
            self._streams.turn(begun)
        first = self.experts(first)
        if self._manner != "between":
            self._streams.turn(begun + 1)
        if self._manner == "within":
            self._streams.join([begun])
        return [first, self.experts(second)]


class Model(nn.Module):
    """Layers, each on the next stream, each of which waits for the layer before it."""

    def __init__(self, streams: Streams, manner: str, times: int) -> None:
        super().__init__()
        self.streams = streams
        self.layers = nn.ModuleList(Block(times * inner, streams, manner) for inner in INNER)

    def forward(self, tokens: torch.Tensor) -> list[Later]:
        """Return the last layer's tokens in two halves, later."""
        parts = [Later(part) for part in tokens.chunk(2)]
        for layer in self.layers:
            parts = layer(parts)
            ended = self.streams.current
            self.streams.turn(ended + 1)
            self.streams.join([ended - 1, ended])
        return parts


class Turning(Hostile):
    """A hostile host with several streams to compute on."""

    def __init__(self, lanes: int, seed: int, streams: Streams) -> None:
        super().__init__(HostVmm(), lanes, len(INNER), seed)
        self._streams = streams

    def compute(self) -> Stream:
        return self._streams.all[self._streams.current]


def streams(rank: Rank, kind: str, manner: str, config: Sequence[Any], seed: int) -> list[bool]:
    """Run many forwards, in which the stream changes, without waiting in between.

    Args:
        rank: This one.
        kind: host, or double or strict for that of a driver.
        manner: See `Block`.
        config: How experts are spread.
        seed: Of the delays.

    Returns:
        Whether each forward was right.
    """
    spread, used = DwdpConfig(*config), Streams()
    torch.manual_seed(3)
    model = Model(used, manner, 1 if kind == "host" else LARGER)
    torch.manual_seed(50 + rank.number)
    inputs = [torch.randn(8, HIDDEN) for _ in range(FORWARDS)]
    expected = [torch.cat([part.tensor for part in model(tokens)]) for tokens in inputs]
    cut(model, spread, rank.number, EXPERTS)
    before = snapshot(model)
    machine = _machine(kind, spread, seed + rank.number, used)
    for stream in used.all:
        # Of this thread alone; with more of them sums are rounded in another way.
        stream.enqueue(partial(torch.set_num_threads, 1))
    observer = machine if isinstance(machine, Hostile) else None
    with enable(model, spread, machine=machine, observer=observer):
        found = [model(tokens) for tokens in inputs]
    # To leave is to wait for all streams.
    right = [
        same_bits(torch.cat([part.tensor for part in parts]), known)
        for parts, known in zip(found, expected, strict=True)
    ]
    assert not differing(model, before)
    return right


def _machine(kind: str, spread: DwdpConfig, seed: int, used: Streams) -> Machine:
    lanes = 1 if spread.contention_opt else spread.dwdp_size - 1
    hostile = Turning(lanes, seed, used)
    used.delay = hostile.delay
    if kind == "host":
        used.all = [hostile.computing_stream, *(HostStream(f"compute-{number}") for number in range(1, STREAMS))]
        return hostile
    double = install(strict=kind == "strict")
    used.all = [double.foreign_stream() for _ in range(STREAMS)]
    used.turned = double.compute_on
    used.turn(0)
    return CudaMachine(0)


def threads(rank: Rank, kind: str) -> None:
    """Run forwards in which each layer is called by another thread than the one before it, one at a time."""
    sharing = Sharing(rank, layers=5, inner=400)
    machine: Machine = LateHostMachine(None)
    if kind != "host":
        install(strict=kind == "strict")
        machine = CudaMachine(0)
    with sharing.leaving_nothing(), enable(sharing.model, sharing.config, machine=machine), ExitStack() as stack:
        callers = [_thread(stack) for _ in range(STREAMS)]
        for _ in range(FORWARDS):
            tokens = sharing.tokens
            for number, layer in enumerate(sharing.model.layers):
                tokens = callers[number % STREAMS].submit(_call, layer, tokens).result(20)
            assert same_bits(tokens, sharing.expected)
        whole = callers[0].submit(_whole, sharing).result(20)
        assert same_bits(whole, sharing.expected)


def _thread(stack: ExitStack) -> ThreadPoolExecutor:
    return stack.enter_context(ThreadPoolExecutor(1, initializer=partial(torch.set_num_threads, 1)))


def _call(layer: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return nn.functional.layer_norm(tokens + layer(tokens), tokens.shape[1:])


def _whole(sharing: Sharing) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = sharing.model(sharing.tokens)
    return found
