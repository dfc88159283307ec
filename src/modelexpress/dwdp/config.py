"""How many ranks share the experts of a model, and how many each of them holds."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from modelexpress.dwdp.partition import Partition
from modelexpress.errors import PartitionInvalid


class Place(NamedTuple):
    """Where a rank of the world stands: which group it is in, and its rank within."""

    group: int
    rank: int


@dataclass(frozen=True)
class DwdpConfig:
    """What every rank of a job says alike.

    Args:
        dwdp_size: Ranks in a group, N.
        num_experts_per_worker: Experts that a rank stores of each layer, L.
        num_prefetch_experts: From one rank's first expert to the next one's, S.
        num_groups: Groups of the job; each holds all experts.
        contention_opt: Cut copies into slices, in turn from each rank. Where links are switched, whole ranges with a
            stream for each rank are faster by far.

    Raises:
        PartitionInvalid: A group has less than two ranks, or there is no group.
    """

    dwdp_size: int
    num_experts_per_worker: int
    num_prefetch_experts: int
    num_groups: int = 1
    contention_opt: bool = False

    def __post_init__(self) -> None:
        if self.dwdp_size < 2:
            raise PartitionInvalid(
                f"dwdp_size={self.dwdp_size}: a group has at least 2 ranks; one that holds everything needs no group"
            )
        if self.num_groups < 1:
            raise PartitionInvalid(f"num_groups={self.num_groups}: there is at least 1 group")

    @classmethod
    def spreading(cls, num_experts: int, dwdp_size: int, *, num_groups: int = 1, contention_opt: bool = False) -> Self:
        """Return the configuration that stores least: E/N experts a rank, and where N does not divide E, a few twice.

        Raises:
            PartitionInvalid: There are fewer experts than ranks, or less than two ranks.
        """
        found = Partition.smallest(num_experts, dwdp_size)
        return cls(dwdp_size, found.per_rank, found.stride, num_groups, contention_opt)

    def partition(self, num_experts: int) -> Partition:
        """Return who holds which of a layer's experts.

        Raises:
            PartitionInvalid: The numbers do not go together.
        """
        return Partition(num_experts, self.dwdp_size, self.num_experts_per_worker, self.num_prefetch_experts)

    def place(self, rank: int, world_size: int) -> Place:
        """Return group and place of a rank of the world.

        Raises:
            PartitionInvalid: The groups need more ranks than there are, or this one is in none.
        """
        needed = self.num_groups * self.dwdp_size
        if needed > world_size:
            fitting = world_size // self.dwdp_size
            raise PartitionInvalid(
                f"num_groups={self.num_groups} × dwdp_size={self.dwdp_size} = {needed} ranks, but there are "
                f"{world_size}: start {needed}{f', or set num_groups={fitting}' if fitting else ''}"
            )
        group, place = divmod(rank, self.dwdp_size)
        if group >= self.num_groups:
            complete = (group + 1) * self.dwdp_size
            more = f"{complete} ranks, and " if complete > world_size else ""
            raise PartitionInvalid(
                f"rank {rank} would be in group {group}, but num_groups={self.num_groups}: only the first "
                f"{needed} ranks share experts; start only those, or {more}set num_groups={group + 1}"
            )
        return Place(group, place)
