"""Cases about beginning and end: ranks that fail, are interrupted, stop or leave, and what is left behind."""

import errno
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from modelexpress.dwdp import DwdpConfig, DwdpManager, enable
from modelexpress.dwdp.host_machine import HostMachine, HostStream
from modelexpress.dwdp.streams import Copy, Event, Stream
from modelexpress.errors import DeviceError, DwdpError, RankLost
from modelexpress.memory.host_vmm import HostVmm
from modelexpress.memory.vmm import Physical
from tests.support.dwdp_models import Shape, Toy, cut, differing, same_bits, snapshot
from tests.support.dwdp_nursery import Rank

EXPERTS, HIDDEN = 6, 48
SPREAD = {2: DwdpConfig(2, 4, 2), 3: DwdpConfig(3, 2, 2), 4: DwdpConfig(4, 3, 1)}


class Possessions(NamedTuple):
    """What a process has that set-up takes and tear-down gives back.

    Connections of the network are torch's own: those to a rank that is lost end at some time.
    """

    descriptors: int
    threads: int
    mappings: int
    shared_bytes: int

    @classmethod
    def now(cls) -> "Possessions":
        """Count them."""
        gc.collect()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return cls(
            sum(map(_is_ours, os.listdir("/proc/self/fd"))),
            len(os.listdir("/proc/self/task")),
            Path("/proc/self/maps").read_text().count("modelexpress-vmm"),
            int(status["RssShmem"].split()[0]) * 1024,
        )

    def check_not_exceeded(self) -> None:
        """Check that the process has no more than this; threads of torch and of links take a moment to end."""

        end = time.monotonic() + 10
        while (found := Possessions.now()).exceeds(self):
            assert time.monotonic() < end, f"{found}, and before {self}"
            time.sleep(0.02)

    def exceeds(self, before: "Possessions") -> bool:
        """Return whether there is more of anything than before."""
        return any(now > then for now, then in zip(self, before, strict=True))


def _is_ours(descriptor: str) -> bool:
    try:
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        if not target.startswith("socket:"):
            return not target.endswith("/store")
        with socket.socket(fileno=os.dup(int(descriptor))) as link:
            return link.family == socket.AF_UNIX
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBADF):
            raise
        return False  # it was that of this directory, or one that another thread has closed meanwhile


class Meddler(HostMachine):
    """A machine that computes late, and does something of its own at one of the calls to it, or to its memory.

    Args:
        action: What is done.
        at: Before the call of this number, counted from 0.
        only: Name of the calls that are counted; "": all.
        late: Seconds that pass before the computing stream copies.
    """

    def __init__(
        self, action: Callable[[], None] = lambda: None, at: int = -1, only: str = "", late: float = 0.001
    ) -> None:
        super().__init__(_MeddlingVmm(self), _Late(late))
        self._action, self._at, self._only = action, at, only
        self.calls = 0

    def called(self, name: str) -> None:
        """Do something, if it is time."""
        if self._only in ("", name):
            self.calls += 1
            if self.calls - 1 == self._at:
                self._action()

    def stream(self) -> Stream:
        self.called("stream")
        return super().stream()

    def event(self, *, timed: bool = False) -> Event:
        self.called("event")
        return super().event(timed=timed)


class _Late(HostStream):
    def __init__(self, late: float) -> None:
        super().__init__("compute")
        self._late = late

    def copy_all(self, copies: Sequence[Copy]) -> None:
        self.enqueue(lambda: time.sleep(self._late))
        super().copy_all(copies)


class _MeddlingVmm(HostVmm):
    def __init__(self, machine: Meddler) -> None:
        super().__init__()
        self._machine = machine

    def reserve(self, nbytes: int) -> int:
        self._machine.called("reserve")
        return super().reserve(nbytes)

    def create(self, nbytes: int) -> Physical:
        self._machine.called("create")
        return super().create(nbytes)

    def map(self, address: int, nbytes: int, physical: Physical) -> None:
        self._machine.called("map")
        super().map(address, nbytes, physical)

    def allow(self, address: int, nbytes: int) -> None:
        self._machine.called("allow")
        super().allow(address, nbytes)

    def export(self, physical: Physical) -> int:
        self._machine.called("export")
        return super().export(physical)

    def import_physical(self, descriptor: int, nbytes: int) -> Physical:
        self._machine.called("import")
        return super().import_physical(descriptor, nbytes)


class Sharing:
    """A small model of a rank, and what it computes with all experts."""

    def __init__(self, rank: Rank, *, loaded: str = "part", inner: int = 41, layers: int = 3) -> None:
        self.config = SPREAD[rank.world]
        torch.manual_seed(5)
        self.model = Toy(HIDDEN, [Shape(EXPERTS, inner)] * layers)
        self.tokens = torch.randn(5, HIDDEN)
        with torch.no_grad():
            self.expected = self.model(self.tokens)
        if loaded == "part":
            cut(self.model, self.config, rank.number, EXPERTS)
        self.before = snapshot(self.model)

    def check(self) -> None:
        """Compute, and compare."""
        with torch.no_grad():
            assert same_bits(self.model(self.tokens), self.expected)

    def once(self) -> None:
        """Set up, compute, and give back."""
        with enable(self.model, self.config):
            self.check()
        self.restored()

    def restored(self) -> None:
        """Check that every parameter has what it had."""
        assert not differing(self.model, self.before)

    @contextmanager
    def leaving_nothing(self) -> Iterator[None]:
        """Check that a block leaves the process and the model as they were."""
        before = Possessions.now()
        yield
        self.restored()
        before.check_not_exceeded()


def repeated(rank: Rank, times: int) -> int:
    """Set up and tear down many times, and return by how many bytes the process has grown."""
    sharing = Sharing(rank, inner=400)
    sharing.once()
    resident = _resident()
    with sharing.leaving_nothing():
        for _ in range(times):
            sharing.once()
    return _resident() - resident


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def refused(rank: Rank, only: str, loaded: str, action: str = "refuse") -> list[str]:
    """Let calls of a kind fail on rank 1, one a set-up: each, or each third; return what each rank was told."""
    sharing = Sharing(rank, loaded=loaded)
    sharing.once()
    told = list[str]()
    for number in range(0, 3000, 1 if loaded == "part" else 3):
        dist.barrier()
        machine = Meddler(_ACTIONS[action], number, only) if rank.number == 1 else Meddler(late=0.005)
        with closing(machine.compute()), sharing.leaving_nothing():
            try:
                with enable(sharing.model, sharing.config, machine=machine, deadline=20):
                    return told
            except (DeviceError, DwdpError, KeyboardInterrupt) as error:
                told.append(f"{type(error).__name__}: {error}" if rank.number == 1 else type(error).__name__)
                del error
    raise AssertionError("it never came to an end")


def _refuse() -> None:
    raise DeviceError("meddled")


_ACTIONS: dict[str, Callable[[], None]] = {
    "refuse": _refuse,
    "interrupt": lambda: signal.raise_signal(signal.SIGINT),
}


def interrupted(rank: Rank, stride: int) -> int:
    """Interrupt rank 1 at every so many lines of set-up and clean-up; return how often it was interrupted."""
    sharing = Sharing(rank, loaded="all", layers=2)
    sharing.once()
    for times in range(1000):
        dist.barrier()
        line = 1 + times * stride if rank.number == 1 else 0
        with sharing.leaving_nothing(), suppress(KeyboardInterrupt, RankLost):
            with DwdpManager(sharing.config, deadline=20) as manager:
                manager.add_all_layers()
                with _interrupting(line) as fired:
                    manager.setup(sharing.model)
                    manager.cleanup()
            del manager
        said: list[Any] = [None] * rank.world
        dist.all_gather_object(said, bool(line) and not fired)
        if any(said):
            return times
    raise AssertionError("it never came to an end")


@contextmanager
def _interrupting(line: int) -> Iterator[list[int]]:
    """Raise SIGINT before a line, counted from 1, of what runs in our packages; 0 for never."""
    passed, fired = 0, list[int]()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal passed
        if event == "line":
            passed += 1
            if passed == line:
                fired.append(frame.f_lineno)
                signal.raise_signal(signal.SIGINT)
        return trace

    def begin(frame: FrameType, event: str, argument: object) -> Any:
        return trace if "/modelexpress/" in frame.f_code.co_filename else None

    sys.settrace(begin if line else None)
    try:
        yield fired
    finally:
        sys.settrace(None)


def lost_in_set_up(rank: Rank, point: str, deadline: float) -> str:
    """Let rank 1 hang somewhere in set-up, where the test finds it; return what the others were told."""
    sharing = Sharing(rank, loaded="all")
    sharing.once()
    victim = rank.number == 1

    def hang() -> None:
        rank.reached("hangs")
        threading.Event().wait()

    if victim and point == "join":
        hang()
    machine = Meddler(hang, 0, point) if victim else Meddler()
    before = Possessions.now()
    try:
        with DwdpManager(sharing.config, machine=machine, deadline=deadline) as manager:
            if victim and point == "agree":
                hang()
            manager.add_all_layers()
            manager.setup(sharing.model)
    except RankLost as error:
        told = str(error)
    sharing.restored()
    sharing.check()
    before.check_not_exceeded()
    return told


def lost_in_forward(rank: Rank) -> str:
    """Compute until another rank is lost; return what this one was told."""
    sharing = Sharing(rank, loaded="all")
    sharing.once()
    end = time.monotonic() + 60
    before = Possessions.now()
    try:
        with enable(sharing.model, sharing.config):
            while time.monotonic() < end:
                sharing.check()
                rank.reached("computes")
    except RankLost as error:
        told = str(error)
    sharing.restored()
    sharing.check()
    before.check_not_exceeded()
    return told


def leaves(rank: Rank) -> None:
    """Let rank 1 leave and end while the others go on."""
    sharing = Sharing(rank)
    with enable(sharing.model, sharing.config):
        sharing.check()
        if rank.number != 1:
            _wait_for(rank, "left-1")
            for _ in range(5):
                sharing.check()
    sharing.restored()
    rank.reached("left")


def _wait_for(rank: Rank, name: str) -> None:
    end = time.monotonic() + 30
    while not (rank.folder / name).exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def one_at_a_time(rank: Rank) -> str:
    """Share while sharing already; then go on, and share again."""
    sharing = Sharing(rank)
    sharing.once()
    with sharing.leaving_nothing():
        with enable(sharing.model, sharing.config):
            try:
                with enable(sharing.model, sharing.config):
                    told = ""
            except DwdpError as error:
                told = str(error)
                del error
            sharing.check()
        sharing.once()
    return told


def cleaned_up(rank: Rank) -> None:
    """Give back more often than needed, and set up again within one block."""
    sharing = Sharing(rank)
    sharing.once()
    with sharing.leaving_nothing(), DwdpManager(sharing.config) as manager:
        manager.cleanup()
        manager.add_all_layers()
        for _ in range(2):
            manager.setup(sharing.model)
            manager.setup(sharing.model)
            manager.cleanup()
            sharing.restored()
            manager.cleanup()


def without_room(rank: Rank) -> str:
    """Give back where there is no room for one of the parameters; return what was told."""
    sharing = Sharing(rank)
    sharing.once()
    before = Possessions.now()
    usual, told = torch.empty_strided, ""

    def full(*shape: Any, **how: Any) -> torch.Tensor:
        torch.empty_strided = usual
        raise RuntimeError("out of memory")

    with DwdpManager(sharing.config) as manager:
        manager.add_all_layers()
        manager.setup(sharing.model)
        torch.empty_strided = full
        try:
            manager.cleanup()
        except DeviceError as error:
            told = str(error)
            del error
    empty = differing(sharing.model, sharing.before)
    assert [sharing.model.get_parameter(name).numel() for name in empty] == [0]
    before.check_not_exceeded()
    return told


def memory(rank: Rank, inner: int, layers: int) -> dict[str, int]:
    """Return the bytes of experts that this rank keeps, and those of the whole model and of its largest layer."""
    sharing = Sharing(rank, inner=inner, layers=layers)
    with enable(sharing.model, sharing.config, machine=HostMachine(HostVmm())) as manager:
        sharing.check()
        files = {}
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{name}"
            if os.path.lexists(path) and "modelexpress-vmm" in os.readlink(path):
                status = os.stat(path)
                files[status.st_ino] = status.st_size
        sizes = [sum(one.tensor.nbytes for one in layer.weights) for layer in manager.layers]
        return {"kept": sum(files.values()), "experts": sum(sizes), "layer": max(sizes)}


def in_order(rank: Rank, config: Sequence[Any]) -> None:
    """Drive the manager as an engine does, layers added in any order."""
    spread = DwdpConfig(*config)
    sharing = Sharing(rank, layers=4)
    with DwdpManager(spread) as manager, torch.no_grad():
        assert manager.start_expert_id == rank.number * spread.num_prefetch_experts
        assert manager.end_expert_id - manager.start_expert_id == spread.num_experts_per_worker
        for added in (2, 0, 3, 1):
            manager.add_layer(added)
        manager.setup(sharing.model)
        for _ in range(3):
            manager.prefetch_first_layers()
            tokens = sharing.tokens
            for number, layer in enumerate(sharing.model.layers):
                manager.wait_and_bind(layer.get_submodule("experts"), number)
                tokens = torch.nn.functional.layer_norm(tokens + layer(tokens), tokens.shape[1:])
                manager.record_compute_and_prefetch_next(number)
            assert same_bits(tokens, sharing.expected)
        manager.cleanup()
        sharing.restored()
