"""Cases in which a block is left while something is under way: copies of a prefetch, or what other streams do."""

import ctypes
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial

import torch

from modelexpress.dwdp import enable
from modelexpress.dwdp.cuda_machine import CudaMachine
from modelexpress.dwdp.host_machine import HostMachine, HostStream
from modelexpress.dwdp.streams import Copy, Machine, Stream
from tests.support.dwdp_gpu_driver import install
from tests.support.dwdp_life import Sharing
from tests.support.dwdp_models import same_bits
from tests.support.dwdp_nursery import Rank
from tests.support.waiting import wait_until

LATE = 0.02
"""Seconds that work takes which is under way."""
_NAMES = [f"layers.{layer}.experts.{name}" for layer in range(2) for name in ("up", "down")]


class Opening(Machine):
    """A machine that opens a gate at the moment it is told to finish: what waits for the gate is under way then."""

    gate = threading.Event()

    def finish(self) -> None:
        self.gate.set()
        super().finish()  # type: ignore[safe-super]  # that of the machine it is mixed with


class OpeningHost(Opening, HostMachine):
    """The host as such a machine; its copies wait for the gate, too, while they are held."""

    held = False

    def stream(self) -> Stream:
        return _Gated(self)


class OpeningDouble(Opening, CudaMachine):
    """The double of a driver as such a machine."""


class _Gated(HostStream):
    def __init__(self, machine: OpeningHost) -> None:
        super().__init__()
        self._machine = machine

    def copy_all(self, copies: Sequence[Copy]) -> None:
        if self._machine.held:
            self.enqueue(partial(self._machine.gate.wait, 20))
            self.enqueue(partial(time.sleep, LATE))
        super().copy_all(copies)


def foreign(rank: Rank, kind: str, work: str, *, raises: bool) -> None:
    """Leave while a stream that nobody has told of still copies experts, or computes with them.

    Args:
        rank: This one.
        kind: host, or double or strict for that of a driver.
        work: copies or computes.
        raises: Whether an exception ends the block.
    """
    machine, make_stream = _machine_and_stream(kind)
    sharing = Sharing(rank, inner=400, layers=2)
    whole = [Sharing(rank, inner=400, layers=2, loaded="all").before[name] for name in _NAMES]
    sharing.once()
    found: list[torch.Tensor] = []
    with closing(make_stream()) as stream, sharing.leaving_nothing():
        with suppress(ZeroDivisionError), enable(sharing.model, sharing.config, machine=machine):
            sharing.check()
            machine.gate = threading.Event()  # set-up may have finished the machine before
            stream.enqueue(partial(machine.gate.wait, 20))
            for name in _NAMES:
                # It keeps nothing but an address: not the parameter, and nothing that would keep memory mapped.
                _use_later(stream, work, sharing.model.get_parameter(name).data, found)
            assert not machine.gate.is_set()
            if raises:
                raise ZeroDivisionError
        assert len(found) == len(whole)
        assert all(map(same_bits, found, whole))
        _check_own(sharing)


def _machine_and_stream(kind: str) -> tuple[Opening, Callable[[], HostStream]]:
    if kind == "host":
        return OpeningHost(), HostStream
    double = install(strict=kind == "strict")
    return OpeningDouble(0), double.foreign_stream


def _use_later(stream: HostStream, work: str, experts: torch.Tensor, found: list[torch.Tensor]) -> None:
    stream.enqueue(partial(time.sleep, LATE))
    if work == "copies":
        found.append(torch.empty_like(experts))
        stream.enqueue(partial(ctypes.memmove, found[-1].data_ptr(), experts.data_ptr(), experts.nbytes))
    else:
        stream.enqueue(lambda: found.append(experts.clone()))


def _check_own(sharing: Sharing) -> None:
    """Check that every parameter has storage of its own, of just its size."""
    sharing.restored()
    storages = {parameter.untyped_storage().data_ptr() for parameter in sharing.model.parameters()}
    assert len(storages) == len(list(sharing.model.parameters()))
    for parameter in sharing.model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def broken(rank: Rank, point: str, error: str, loaded: str, alone: bool) -> None:
    """Raise within the block while copies of a prefetch are under way, and held back until all is given back.

    Args:
        rank: This one.
        point: begin: before the first forward; middle: within it; end: behind it.
        error: refused or interrupted.
        loaded: part or all of the experts.
        alone: Whether only rank 1 raises, and the others go on.
    """
    sharing = Sharing(rank, loaded=loaded)
    sharing.once()
    machine = OpeningHost()
    machine.gate = threading.Event()
    with sharing.leaving_nothing():
        if alone and rank.number != 1:
            with enable(sharing.model, sharing.config, machine=machine):
                sharing.check()
                rank.reached("computed")
                wait_until((rank.folder / "left-1").exists, 30)
                for _ in range(3):
                    sharing.check()
        else:
            with suppress(ZeroDivisionError, KeyboardInterrupt):
                _break(sharing, machine, point, _ERRORS[error])
            assert machine.gate.is_set()
            rank.reached("left")
        _check_own(sharing)
        if loaded == "all":
            sharing.check()


def _break(sharing: Sharing, machine: OpeningHost, point: str, fail: Callable[..., None]) -> None:
    machine.held = point == "begin"
    blocks = list(sharing.model.layers)
    with ExitStack() as hooks, enable(sharing.model, sharing.config, machine=machine):
        if point == "begin":
            fail()
        if point == "middle":
            machine.held = True  # behind the first layer, the third one's experts are fetched
            hooks.enter_context(blocks[1].get_submodule("gate").register_forward_pre_hook(fail))
        else:  # behind the third layer, the first one's experts are fetched for the next forward
            hold = blocks[2].get_submodule("gate").register_forward_pre_hook(lambda *_: setattr(machine, "held", True))
            hooks.enter_context(hold)
            hooks.enter_context(blocks[2].register_forward_hook(fail))
        sharing.check()
    raise AssertionError("the block should have been left by an exception")


def _refuse(*_: object) -> None:
    raise ZeroDivisionError


_ERRORS: dict[str, Callable[..., None]] = {
    "refused": _refuse,
    "interrupted": lambda *_: signal.raise_signal(signal.SIGINT),
}
