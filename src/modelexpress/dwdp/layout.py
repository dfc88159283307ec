"""Where the bytes of one stacked weight lie: a rank's own experts in place, the others in pages of a slot.

    base                     base + pre_bytes             + own_bytes
     | pages of the slot      | the rank's own memory      | pages of the slot     |
     |padding| experts before | its experts                | experts behind        |

Addresses grow to the right; the full tensor starts behind the padding. Own memory is whole units of the driver's
granularity, so its first and last unit also hold a piece of the experts beside them: the edges, which are filled once.
"""

from dataclasses import dataclass
from functools import cached_property

PAGE_UNITS = 8
"""Units of granularity in a page of a slot: few mappings, and little lost where a range ends within a page."""

SMALL_UNITS = 2
"""A tensor of at most so many units of granularity is kept whole: fetching it would cost more."""


def is_small(tensor_bytes: int, granularity: int) -> bool:
    """Return whether every rank keeps all rows of a stacked tensor of this size, in bytes."""
    return tensor_bytes <= SMALL_UNITS * granularity


@dataclass(frozen=True)
class WeightLayout:
    """Offsets and sizes, in bytes, of one weight of one layer on one rank.

    Args:
        num_experts: Rows of the full tensor, E.
        held: Experts that the rank stores.
        expert_bytes: Size of one expert, b.
        granularity: Of the driver's mappings, g.
    """

    num_experts: int
    held: range
    expert_bytes: int
    granularity: int

    @property
    def page_bytes(self) -> int:
        """Size of one page of a slot, p."""
        return PAGE_UNITS * self.granularity

    @property
    def tensor_bytes(self) -> int:
        """Size of the full tensor."""
        return self.num_experts * self.expert_bytes

    @cached_property
    def own_start(self) -> int:
        """First byte of the full tensor that the rank's own memory holds."""
        return _down(self.held.start * self.expert_bytes, self.granularity)

    @cached_property
    def own_stop(self) -> int:
        """End of the rank's own memory, counted from the full tensor's start; it may lie beyond the tensor's end."""
        return _up(self.held.stop * self.expert_bytes, self.granularity)

    @property
    def own_bytes(self) -> int:
        """Size of the rank's own memory, which peers map as a whole."""
        return self.own_stop - self.own_start

    @property
    def leading_edge(self) -> int:
        """Bytes of own memory before the first expert held."""
        return self.held.start * self.expert_bytes - self.own_start

    @property
    def trailing_edge(self) -> int:
        """Bytes of own memory behind the last expert held."""
        return self.own_stop - self.held.stop * self.expert_bytes

    @property
    def pre_bytes(self) -> int:
        """Pages before own memory."""
        return _up(self.own_start, self.page_bytes)

    @property
    def padding(self) -> int:
        """Bytes from the range's base to the full tensor's first."""
        return self.pre_bytes - self.own_start

    @property
    def post_bytes(self) -> int:
        """Pages behind own memory."""
        return _up(_up(self.tensor_bytes, self.granularity) - self.own_stop, self.page_bytes)

    @property
    def pages(self) -> int:
        """Pages of a slot that this weight takes."""
        return (self.pre_bytes + self.post_bytes) // self.page_bytes

    @property
    def nbytes(self) -> int:
        """Addresses to reserve."""
        return self.pre_bytes + self.own_bytes + self.post_bytes

    def outside(self, start: int, stop: int) -> tuple[range, ...]:
        """Return the bytes of experts `start` to `stop` that lie in pages of the slot: what is fetched for each use."""
        return self._parts(start, stop, ((0, self.own_start), (self.own_stop, self.tensor_bytes)))

    def edges(self, start: int, stop: int) -> tuple[range, ...]:
        """Return the bytes of experts `start` to `stop`, held by others, that lie in own memory: filled once."""
        leading = (self.own_start, self.own_start + self.leading_edge)
        return self._parts(start, stop, (leading, (self.own_stop - self.trailing_edge, self.own_stop)))

    def _parts(self, start: int, stop: int, within: tuple[tuple[int, int], ...]) -> tuple[range, ...]:
        wanted = range(start * self.expert_bytes, stop * self.expert_bytes)
        parts = (range(max(wanted.start, low), min(wanted.stop, high)) for low, high in within)
        return tuple(part for part in parts if part)


def _down(value: int, unit: int) -> int:
    return value // unit * unit


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
