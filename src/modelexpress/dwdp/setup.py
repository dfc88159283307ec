"""Moving the experts of a model into shared memory.

Weight by weight, so that never more than one is there twice: its original storage is freed when all ranks have met its
copies, and before the next one is moved. Not earlier: a weight that was loaded whole is given back from those copies.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.links import Links
from modelexpress.dwdp.model import ExpertLayer, spec_of
from modelexpress.dwdp.pages import PagePool, slot_of
from modelexpress.dwdp.prefetch import in_turn
from modelexpress.dwdp.ranks import Ranks
from modelexpress.dwdp.shared_weight import SharedWeight
from modelexpress.dwdp.small import gather_small
from modelexpress.dwdp.streams import Copy, Machine
from modelexpress.dwdp.undo import Undo
from modelexpress.memory.vmm import Physical


class Shared(NamedTuple):
    """What set-up made: the weights of each layer, and for each layer the copies of each lane."""

    weights: list[list[SharedWeight]]
    copies: list[list[list[Copy]]]


def share(
    layers: Sequence[ExpertLayer],
    config: DwdpConfig,
    ranks: Ranks,
    links: Links,
    machine: Machine,
    undo: Undo,
    between: Callable[[], None],
) -> Shared:
    """Share the experts of layers that all ranks have agreed on.

    Args:
        layers: In order of use.
        config: How many experts a rank stores.
        ranks: The group.
        links: Carry descriptors.
        machine: Makes memory, and copies.
        undo: Gets a step for everything that was done.
        between: Is called behind each weight.

    Raises:
        DeviceError: There is not enough memory.
        RankLost: A rank ended, or did not answer within the deadline.
    """
    partitions = [config.partition(layer.num_experts) for layer in layers]
    weights = [
        [
            SharedWeight(weight, spec_of(layer, weight), partition, ranks.rank, machine.vmm.granularity)
            for weight in layer.weights
        ]
        for layer, partition in zip(layers, partitions, strict=True)
    ]
    pool = _pool(weights, machine)
    undo.add(pool.close)
    for position, layer in enumerate(weights):
        taken = 0
        for weight in layer:
            pages = weight.layout.pages
            _share_weight(weight, pool.take(slot_of(position), taken, pages), links, machine, undo)
            taken += pages
            between()
    ranks.gather(True)  # all own memory is filled
    machine.compute().copy_all([copy for layer in weights for weight in layer for copy in weight.edges()])
    machine.compute().finish()
    gather_small(layers, partitions, ranks, undo)
    return Shared(weights, [_lanes(layer, config, ranks) for layer in weights])


def _pool(weights: Sequence[Sequence[SharedWeight]], machine: Machine) -> PagePool:
    pages = [sum(weight.layout.pages for weight in layer) for layer in weights]
    page_bytes = next((weight.layout.page_bytes for layer in weights for weight in layer), machine.vmm.granularity)
    return PagePool(machine.vmm, page_bytes, pages)


def _share_weight(weight: SharedWeight, pages: Sequence[Physical], links: Links, machine: Machine, undo: Undo) -> None:
    own = weight.move(machine, pages, undo)
    try:
        # What peers map is complete: one that takes everything back reads it, whatever happens here.
        machine.compute().finish()
        received = links.swap([own])
    finally:
        os.close(own)
    weight.meet(machine, {peer: descriptor for peer, [descriptor] in received.items()}, undo)
    machine.trim()  # the next one finds the room of this one's original storage


def _lanes(layer: Sequence[SharedWeight], config: DwdpConfig, ranks: Ranks) -> list[list[Copy]]:
    """Return a lane for each peer, the next rank's first; or one for all, in slices, where contention counts."""
    peers = [(ranks.rank + step) % ranks.size for step in range(1, ranks.size)]
    lanes = [[copy for weight in layer for copy in weight.fetches(peer)] for peer in peers]
    return [in_turn(lanes)] if config.contention_opt else lanes
