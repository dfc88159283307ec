"""The ranks of a group talking to each other, by torch.distributed or by MPI."""

import pickle
import struct
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.interrupts import MOMENT, held_back
from modelexpress.dwdp.meeting import meet
from modelexpress.errors import DwdpError, PartitionInvalid, RankLost

T = TypeVar("T")
_LENGTH = struct.Struct("!Q")


@runtime_checkable
class Communicator(Protocol):
    """What is used of an mpi4py communicator."""

    def Get_rank(self) -> int: ...  # noqa: N802 -- mpi4py's name
    def Get_size(self) -> int: ...  # noqa: N802 -- mpi4py's name
    def allgather(self, sendobj: Any) -> list[Any]: ...
    def Split(self, color: int, key: int) -> "Communicator": ...  # noqa: N802 -- mpi4py's name
    def Free(self) -> None: ...  # noqa: N802 -- mpi4py's name


class Ranks(ABC):
    """The ranks that share experts; every rank calls the same methods in the same order."""

    rank: int
    size: int
    meanwhile: Callable[[], object] = staticmethod(lambda: None)
    """Is called every moment while others are waited for; what it raises ends the waiting."""

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """Return the value of each rank, in order.

        Raises:
            RankLost: One of them ended, or did not answer within the deadline.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what was made for talking; the caller's group stays."""


class TorchRanks(Ranks):
    """Ranks of torch.distributed, over a gloo group of their own, which says so when one of them is lost.

    An interrupt (SIGINT, SIGTERM) ends the waiting for others within a moment. Who does not come to the end of a call
    has left the group: the others lose it then, and do not wait.

    Args:
        members: Ranks of the world, in order.
        deadline: Seconds to wait for the others.

    Raises:
        RankLost: The others did not come.
    """

    def __init__(self, members: Sequence[int], deadline: float) -> None:
        self.rank, self.size = list(members).index(dist.get_rank()), len(members)
        self._group: Any = None  # torch's annotations do not know its methods
        self._work: Any = None
        try:
            with held_back() as handle_interrupts:
                # `new_group` would give the second group of the same ranks the first one's name.
                store = _get_default_store()
                store = PrefixStore(meet(store, members, self.rank, deadline, handle_interrupts), store)
                self._group = dist.ProcessGroupGloo(store, self.rank, self.size, timedelta(seconds=deadline))
        except RuntimeError as error:
            raise RankLost(f"ranks {list(members)} of the world do not all come together: {error}") from error
        except BaseException:  # also an interrupt that came while ranks connected
            self.close()
            raise

    def gather(self, value: T) -> list[T]:
        if self._group is None:
            raise RankLost(f"rank {self.rank} has left the group: leave the block, and enter a new one")
        try:
            with held_back() as handle_interrupts:
                return self._gathered(value, handle_interrupts)
        except RuntimeError as error:
            self.close()
            raise RankLost(
                f"rank {self.rank} of the group waits for others that ended, or do not answer: {error}"
            ) from error
        except BaseException:  # also an interrupt: this rank is out of step, and the others need not wait for it
            self.close()
            raise

    def close(self) -> None:
        group, self._group = self._group, None
        work, self._work = self._work, None
        if group is not None and work is not None and not work.is_completed():
            threading.Thread(target=_let_go, args=(group, work), name="dwdp-leaves", daemon=True).start()

    def _gathered(self, value: T, handle_interrupts: Callable[[], None]) -> list[T]:
        data = pickle.dumps(value)
        # Torch still delivers what an interrupted rank has begun to send: its length, and never the rest.
        found = self._gather_bytes(_LENGTH.pack(len(data)), handle_interrupts)
        lengths = [_LENGTH.unpack(length)[0] for length in found]
        parts = self._gather_bytes(data.ljust(max(lengths)), handle_interrupts)
        return [pickle.loads(part[:length]) for part, length in zip(parts, lengths, strict=True)]

    def _gather_bytes(self, data: bytes, handle_interrupts: Callable[[], None]) -> list[bytes]:
        """Return the bytes of each rank, all as many."""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._work = self._group.allgather([found], [mine])
        while not self._work.is_completed():
            with suppress(RuntimeError):  # the moment is over; or it failed, and is completed
                self._work.wait(timedelta(seconds=MOMENT))  # within it nothing interrupts
            handle_interrupts()
            self.meanwhile()
        self._work.wait()
        return [one.numpy().tobytes() for one in found]


def _let_go(group: Any, work: Any) -> None:
    """Wait until torch is done with a group, which it cannot be torn from: until the others come, or the deadline."""
    with suppress(RuntimeError):
        work.wait()


class MpiRanks(Ranks):
    """Ranks of a communicator of mpi4py, which ends the job when one of them is lost."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator, self._closed = communicator, False
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()

    def gather(self, value: T) -> list[T]:
        return cast(list[T], self._communicator.allgather(value))

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._communicator.Free()


def join(config: DwdpConfig, group: object = None, deadline: float = 60.0) -> Ranks:
    """Return the ranks that share experts with this one.

    Args:
        config: Says how the world is cut into groups.
        group: A process group of torch.distributed or a communicator of mpi4py to cut; None: the world.
        deadline: Seconds to wait for the others.

    Raises:
        PartitionInvalid: There are too few ranks, or this one is in no group.
        DwdpError: There is no such group of processes.
        RankLost: The others did not come.
    """
    if isinstance(group, Communicator):
        place = config.place(group.Get_rank(), group.Get_size())
        return MpiRanks(group.Split(place.group, place.rank))
    if not (dist.is_available() and dist.is_initialized()):
        raise DwdpError(
            "no group of processes was made: call torch.distributed.init_process_group (start with torchrun), "
            "or pass a communicator of mpi4py as group"
        )
    world = _members(group)
    place = config.place(world.index(dist.get_rank()), len(world))
    first = place.group * config.dwdp_size
    return TorchRanks(world[first : first + config.dwdp_size], deadline)


def _members(group: object) -> list[int]:
    """Return the ranks of a group of torch, of which this one is one."""
    mine = dist.get_rank()
    if group is not dist.GroupMember.NON_GROUP_MEMBER:
        try:
            members = dist.get_process_group_ranks(cast(Any, group))
        except (KeyError, TypeError):
            raise DwdpError(
                f"group={group!r} is neither a process group of torch.distributed nor a communicator of mpi4py"
            ) from None
        if mine in members:
            return members
    raise PartitionInvalid(
        f"rank {mine} of the world is no member of group=: pass the group that this rank is in, and leave the block "
        "out on ranks that are in none"
    )


def agreed_name(ranks: Ranks) -> str:
    """Return a name that nobody else has, the same on all ranks."""
    return ranks.gather(uuid.uuid4().hex)[0]
