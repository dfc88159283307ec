"""Which rank of a group holds which experts, and from whom each fetches what it lacks."""

from dataclasses import dataclass
from typing import NamedTuple, Self

from modelexpress.errors import PartitionInvalid


class Lacked(NamedTuple):
    """A run of experts that one rank fetches from another: `start` up to, not including, `stop`."""

    owner: int
    start: int
    stop: int


@dataclass(frozen=True)
class Partition:
    """Rank r of a group holds the experts from r·S up to r·S + L; the last rank's end is the last expert.

    Args:
        num_experts: Experts of a layer, as many as its gate knows, E.
        size: Ranks, N.
        per_rank: Experts that a rank stores, L.
        stride: From one rank's first expert to the next one's, S. Ranks overlap by L − S.

    Raises:
        PartitionInvalid: The ranges leave a gap, miss an expert, or reach beyond the last.
    """

    num_experts: int
    size: int
    per_rank: int
    stride: int

    def __post_init__(self) -> None:
        reach = (self.size - 1) * self.stride + self.per_rank
        if self.per_rank <= 0 or self.stride <= 0:
            self._refuse("both are at least 1")
        if self.stride > self.per_rank:
            self._refuse(f"a stride above the {self.per_rank} experts a rank stores leaves gaps")
        if reach < self.num_experts:
            self._refuse(f"the ranks reach expert {reach} of {self.num_experts}: the rest is nowhere")
        if reach > self.num_experts:
            self._refuse(f"the last rank reaches expert {reach} of {self.num_experts}: it cannot be stored in part")

    @classmethod
    def smallest(cls, num_experts: int, size: int) -> Self:
        """Return the partition in which a rank stores least.

        Raises:
            PartitionInvalid: There are fewer experts than ranks, or no ranks.
        """
        if size < 1:
            raise PartitionInvalid(f"dwdp_size={size}: a group has at least 2 ranks")
        if num_experts < size:
            raise PartitionInvalid(
                f"{num_experts} experts are too few for dwdp_size={size} ranks: {_fewer_ranks(num_experts)}"
            )
        stride = num_experts // size
        return cls(num_experts, size, num_experts - (size - 1) * stride, stride)

    def held(self, rank: int) -> range:
        """Return the experts that a rank stores."""
        return range(rank * self.stride, rank * self.stride + self.per_rank)

    def owner(self, expert: int) -> int:
        """Return the lowest rank that holds an expert: from it the others fetch it."""
        beyond = expert - self.per_rank + 1
        return max(0, -(-beyond // self.stride))

    def lacked(self, rank: int) -> tuple[Lacked, ...]:
        """Return what a rank fetches for each layer, in order of experts: at most one run from each owner and side."""
        held, runs = self.held(rank), list[Lacked]()
        for owner in range(self.size):
            start = self.held(owner - 1).stop if owner else 0
            stop = self.held(owner).stop
            for low, high in ((start, min(stop, held.start)), (max(start, held.stop), stop)):
                if low < high:
                    runs.append(Lacked(owner, low, high))
        return tuple(runs)

    def check_loaded(self, name: str, rows: int) -> None:
        """Check that a weight has as many experts as a rank stores, or all.

        Raises:
            PartitionInvalid: It has another number.
        """
        if rows not in (self.per_rank, self.num_experts):
            raise PartitionInvalid(
                f"{name} was loaded with {rows} experts, but num_experts_per_worker={self.per_rank} of "
                f"{self.num_experts}: load {self.per_rank} (or all), or configure what was loaded"
            )

    def _refuse(self, reason: str) -> None:
        words = (
            f"{self.num_experts} experts over dwdp_size={self.size} with num_experts_per_worker={self.per_rank} and "
            f"num_prefetch_experts={self.stride}: {reason}; "
        )
        if self.num_experts < self.size:
            raise PartitionInvalid(f"{words}{_fewer_ranks(self.num_experts)}")
        best = self.smallest(self.num_experts, self.size)
        raise PartitionInvalid(
            f"{words}num_experts_per_worker={best.per_rank} and num_prefetch_experts={best.stride} would do"
        )


def _fewer_ranks(num_experts: int) -> str:
    """Say what to do where there are fewer experts than ranks."""
    return f"set dwdp_size={num_experts} or less" if num_experts > 1 else "there is nothing to share"
