"""The ranks of a group talking to each other, by torch.distributed or by MPI."""

import pickle
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.meeting import meet
from modelexpress.errors import DwdpError, RankLost

T = TypeVar("T")


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

    Args:
        members: Ranks of the world, in order.
        deadline: Seconds to wait for the others.

    Raises:
        RankLost: The others did not come.
    """

    def __init__(self, members: Sequence[int], deadline: float) -> None:
        self.rank, self.size = list(members).index(dist.get_rank()), len(members)
        # `new_group` would give the second group of the same ranks the first one's name.
        store = _get_default_store()
        store = PrefixStore(meet(store, members, self.rank, deadline), store)
        try:
            # torch's annotations do not know its methods
            self._group: Any = dist.ProcessGroupGloo(store, self.rank, self.size, timedelta(seconds=deadline))
        except RuntimeError as error:
            raise RankLost(f"ranks {list(members)} of the world do not all come together: {error}") from error

    def gather(self, value: T) -> list[T]:
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        try:
            lengths = [int(length) for length in self._gather_tensors(torch.tensor([len(data)], device="cpu"))]
            padded = torch.zeros(max(lengths), dtype=torch.uint8, device="cpu")
            padded[: len(data)] = data
            found = self._gather_tensors(padded)
        except RuntimeError as error:
            raise RankLost(
                f"rank {self.rank} of the group waits for others that ended, or do not answer: {error}"
            ) from error
        return [pickle.loads(part[:length].numpy().tobytes()) for part, length in zip(found, lengths, strict=True)]

    def close(self) -> None:
        self._group = None

    def _gather_tensors(self, mine: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(mine) for _ in range(self.size)]
        self._group.allgather([found], [mine]).wait()
        return found


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
    world = dist.get_process_group_ranks(cast(Any, group))
    place = config.place(world.index(dist.get_rank()), len(world))
    first = place.group * config.dwdp_size
    return TorchRanks(world[first : first + config.dwdp_size], deadline)


def agreed_name(ranks: Ranks) -> str:
    """Return a name that nobody else has, the same on all ranks."""
    return ranks.gather(uuid.uuid4().hex)[0]
