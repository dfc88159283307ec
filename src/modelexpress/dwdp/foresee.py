"""Foreseeing a group: who holds which experts, how much memory that takes, and when fetching them is hidden.

What a rank fetches of a layer takes R / B seconds: R bytes of the experts that it lacks, B the bandwidth that it gets
from all peers together. Meanwhile it computes the experts of one layer and the attention of the next, which takes as
long as a whole layer does: `layer_time.py` says how long. Fetching is hidden from as many tokens on as make that last
R / B. What is not known is left out, attention where shapes are given alone, its scores without the length of prompts:
computing is longer than foreseen then, and fewer tokens do. Where a layer was measured, that sets the scale.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.layer_time import LayerTime
from modelexpress.dwdp.layout import WeightLayout, is_small
from modelexpress.dwdp.pages import SLOTS
from modelexpress.dwdp.partition import Lacked, Partition
from modelexpress.dwdp.shapes import LayerShape, ModelShape
from modelexpress.errors import ConfigurationError

GRANULARITY = 2 << 20
"""Bytes of which mappings of a CUDA device are multiples."""

H200_BANDWIDTH = 372e9
"""Bytes a second that each of four H200s of a host gets when all fetch at once over NVLink, one stream per peer."""

H200_FLOPS = 490e12
"""FLOP a second of grouped matrix products in bfloat16 on an H200, for 8K to 32K tokens, top 8 of 128 experts."""

H200_MEMORY_BANDWIDTH = 4.8e12
"""Bytes a second of an H200's memory, by its data sheet. A copy within it reaches 4.2e12, read and written together."""

TOKENS = tuple(1024 << step for step in range(7))
"""Of a forward, for which times are shown."""


@dataclass(frozen=True)
class Speed:
    """How fast a rank fetches and computes.

    Args:
        bandwidth: Bytes a second from all peers together.
        flops: FLOP a second.
        measured: Tokens, and the seconds that a layer took for them, attention included: times are scaled to that.
        prompt: Tokens of each prompt, for the scores of attention; 0: they are left out.
        memory_bandwidth: Bytes a second of a rank's own memory.

    Raises:
        ConfigurationError: A number is not positive, or none at all.
    """

    bandwidth: float = H200_BANDWIDTH
    flops: float = H200_FLOPS
    measured: tuple[int, float] | None = None
    prompt: int = 0
    memory_bandwidth: float = H200_MEMORY_BANDWIDTH

    def __post_init__(self) -> None:
        numbers = (self.bandwidth, self.flops, self.memory_bandwidth, *(self.measured or (1,)))
        if not all(0 < number < math.inf for number in numbers):  # also what is not a number
            raise ConfigurationError("bandwidth, FLOP a second and what was measured are more than 0, and finite")
        if self.prompt < 0:
            raise ConfigurationError(f"a prompt of {self.prompt} tokens: it has at least 1, or 0 leaves it out")


@dataclass(frozen=True)
class RankNeeds:
    """What one rank stores, reserves and fetches, in bytes.

    Args:
        rank: In the group.
        held: Experts that it stores of each layer.
        lacked: What it fetches, and from whom.
        own: Memory with the experts that it stores; peers map it.
        slots: Memory that what it fetches goes to.
        small: Tensors that every rank keeps whole.
        addresses: That are reserved: for the full tensors, and for the memory of peers.
        remote: What it fetches for each layer, in order.
    """

    rank: int
    held: range
    lacked: tuple[Lacked, ...]
    own: int
    slots: int
    small: int
    addresses: int
    remote: tuple[int, ...]

    @property
    def memory(self) -> int:
        """Everything that it takes."""
        return self.own + self.slots + self.small


@dataclass(frozen=True)
class Foresight:
    """A group before it exists.

    Args:
        shape: The model.
        config: The group.
        speed: Of its ranks.
        ranks: What each of them needs.
    """

    shape: ModelShape
    config: DwdpConfig
    speed: Speed
    ranks: tuple[RankNeeds, ...]

    @property
    def everything(self) -> int:
        """Bytes that a rank which holds all experts needs for them."""
        return self.shape.nbytes

    @cached_property
    def remote(self) -> int:
        """The most that a rank fetches for a layer, in bytes."""
        return max(max(needs.remote) for needs in self.ranks)

    @property
    def fetch_seconds(self) -> float:
        """What that takes, and computing must last to hide it."""
        return self.remote / self.speed.bandwidth

    @property
    def attention_counted(self) -> bool:
        """Whether what computing takes has attention in it: without, it lasts longer than foreseen."""
        work = self.shape.work
        return self.speed.measured is not None or (work is not None and work.attention > 0)

    def compute_seconds(self, tokens: int) -> float | None:
        """Return the time of the experts of a layer and the attention of the next; None where that is not known."""
        speed, work = self.speed, self.shape.work
        if work is None:
            return tokens * speed.measured[1] / speed.measured[0] if speed.measured else None
        layer = LayerTime(work, self.shape.layers[0], speed.flops, speed.memory_bandwidth, speed.prompt)
        scale = speed.measured[1] / layer.seconds(speed.measured[0]) if speed.measured else 1.0
        return scale * layer.seconds(tokens)

    @cached_property
    def hidden_from(self) -> int | None:
        """The fewest tokens of a rank's forward with which fetching is hidden; None where that is not known."""
        if self.compute_seconds(1) is None:
            return None
        return bisect_left(range(1 << 60), self.fetch_seconds, key=lambda tokens: self.compute_seconds(tokens) or 0.0)

    def ratio(self, tokens: int) -> float | None:
        """Return the time of computing over that of fetching: below 1 the ranks wait for the link."""
        seconds = self.compute_seconds(tokens)
        if seconds is None:
            return None
        return seconds / self.fetch_seconds if self.remote else math.inf

    def fields(self) -> dict[str, Any]:
        """Return all of it as an object for JSON; bytes, seconds, tokens."""
        config = self.config
        return {
            "origin": self.shape.origin,
            "layers": [layer.number for layer in self.shape.layers],
            "num_experts": self.shape.layers[0].num_experts,
            "dwdp_size": config.dwdp_size,
            "num_experts_per_worker": config.num_experts_per_worker,
            "num_prefetch_experts": config.num_prefetch_experts,
            "ranks": [_fields(needs) for needs in self.ranks],
            "bytes_of_all_experts": self.everything,
            "remote_bytes_per_layer": self.remote,
            "bandwidth": self.speed.bandwidth,
            "seconds_to_hide": self.fetch_seconds,
            "flops": self.speed.flops,
            "memory_bandwidth": self.speed.memory_bandwidth,
            "measured": self.speed.measured,
            "prompt": self.speed.prompt,
            "attention_counted": self.attention_counted,
            "seconds_to_compute": {str(tokens): self.compute_seconds(tokens) for tokens in TOKENS},
            "hidden_from_tokens": self.hidden_from,
        }


def foresee(
    shape: ModelShape, config: DwdpConfig, speed: Speed | None = None, *, granularity: int = GRANULARITY
) -> Foresight:
    """Return what the ranks of a group would need for a model.

    Args:
        shape: The model's experts.
        config: How they are spread.
        speed: How fast ranks fetch and compute; None: as on H200s of one host.
        granularity: Of the memory's mappings, in bytes.

    Raises:
        PartitionInvalid: Experts and configuration do not go together.
    """
    partitions = [config.partition(layer.num_experts) for layer in shape.layers]
    ranks = (_needs(rank, shape.layers, partitions, granularity) for rank in range(config.dwdp_size))
    return Foresight(shape, config, speed or Speed(), tuple(ranks))


def _needs(rank: int, layers: Sequence[LayerShape], partitions: Sequence[Partition], granularity: int) -> RankNeeds:
    own, addresses, small = 0, 0, 0
    pages, remote = list[int](), list[int]()
    for layer, partition in zip(layers, partitions, strict=True):
        in_slot, fetched = 0, 0
        for tensor in layer.tensors:
            if is_small(layer.num_experts * tensor.expert_bytes, granularity):
                small += layer.num_experts * tensor.expert_bytes
                continue
            layouts = [
                WeightLayout(layer.num_experts, partition.held(each), tensor.expert_bytes, granularity)
                for each in range(partition.size)
            ]
            mine = layouts[rank]
            own += mine.own_bytes
            addresses += mine.nbytes + sum(layout.own_bytes for layout in layouts if layout is not mine)
            in_slot += mine.pages * mine.page_bytes
            fetched += sum(len(part) for run in partition.lacked(rank) for part in mine.outside(run.start, run.stop))
        pages.append(in_slot)
        remote.append(fetched)
    slots = sum(max(pages[slot::SLOTS], default=0) for slot in range(SLOTS))
    first = partitions[0]
    return RankNeeds(rank, first.held(rank), first.lacked(rank), own, slots, small, addresses, tuple(remote))


def _fields(needs: RankNeeds) -> dict[str, Any]:
    return {
        "rank": needs.rank,
        "start_expert_id": needs.held.start,
        "end_expert_id": needs.held.stop,
        "fetches": [run._asdict() for run in needs.lacked],
        "own_bytes": needs.own,
        "slot_bytes": needs.slots,
        "small_bytes": needs.small,
        "memory_bytes": needs.memory,
        "address_bytes": needs.addresses,
        "remote_bytes": list(needs.remote),
    }
