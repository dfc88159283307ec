"""Before memory is touched, all ranks compare what they are about to share."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.model import ExpertLayer, WeightSpec, spec_of
from modelexpress.dwdp.ranks import Ranks
from modelexpress.dwdp.streams import Machine
from modelexpress.errors import DeviceError, DwdpError, ExpertsUnsupported


class Offer(NamedTuple):
    """What one rank wants to share, or why it cannot."""

    config: DwdpConfig
    granularity: int
    weights: tuple[WeightSpec, ...]
    small: tuple[tuple[str, str, tuple[int, ...], str], ...]
    refusal: str


def agree(
    ranks: Ranks, config: DwdpConfig, find: Callable[[], tuple[Machine, Sequence[ExpertLayer]]]
) -> tuple[Machine, Sequence[ExpertLayer]]:
    """Return this rank's machine and layers, checked: all ranks have the same. Where one refuses, all do.

    Raises:
        DwdpError: This rank cannot share what it has, or another one cannot.
        DeviceError: This rank's device cannot be used.
        PartitionInvalid: The numbers do not go together, or something else was loaded.
        ExpertsUnsupported: Ranks hold different layers, weights or settings.
        RankLost: A rank ended, or did not answer within the deadline.
    """
    offer = Offer(config, 0, (), (), "")
    failure: DwdpError | DeviceError | None = None
    try:
        machine, layers = find()
        offer = Offer(config, machine.vmm.granularity, *_described(config, layers), "")
    except (DwdpError, DeviceError) as error:
        failure = error
    offers = ranks.gather(offer._replace(refusal=str(failure or "")))
    if failure is not None:
        raise failure
    for rank, offer in enumerate(offers):
        if offer.refusal:
            raise DwdpError(f"rank {rank} of the group cannot share its experts: {offer.refusal}")
        if (difference := _difference(offers[0], offer)) is not None:
            raise ExpertsUnsupported(
                f"ranks 0 and {rank} of the group differ: {difference}; all ranks run the same model with the same "
                "settings, and pipeline parallelism within a group is not possible"
            )
    return machine, layers


def _described(
    config: DwdpConfig, layers: Sequence[ExpertLayer]
) -> tuple[tuple[WeightSpec, ...], tuple[tuple[str, str, tuple[int, ...], str], ...]]:
    weights, small, names = [], [], dict[int, str]()
    for layer in layers:
        partition = config.partition(layer.num_experts)
        for weight in (*layer.weights, *layer.small):
            name = f"{layer.name}: {weight.name}"
            partition.check_loaded(name, weight.tensor.shape[0])
            if (other := names.setdefault(id(weight.tensor), name)) != name:
                raise ExpertsUnsupported(f"{other} and {name} are one tensor: each layer needs experts of its own")
        weights += [spec_of(layer, weight) for weight in layer.weights]
        for one in layer.small:
            tensor = one.tensor
            if tensor.device.type == "meta":
                raise ExpertsUnsupported(f"{layer.name}: {one.name} has no memory yet: load this rank's experts first")
            rows = () if tensor.shape[0] == layer.num_experts else (partition.per_rank,)
            small.append((layer.name, one.name, (*rows, *tensor.shape[1:]), str(tensor.dtype)))
    return tuple(weights), tuple(small)


def _difference(first: Offer, other: Offer) -> str | None:
    if first.config != other.config:
        return f"{first.config} and {other.config}"
    if first.granularity != other.granularity:
        return f"memory in units of {first.granularity} and of {other.granularity} bytes"
    for mine, theirs in ((first.weights, other.weights), (first.small, other.small)):
        for left, right in zip(mine, theirs, strict=False):
            if left != right:
                return f"{left} and {right}"
        if len(mine) != len(theirs):
            longer = (mine if len(mine) > len(theirs) else theirs)[min(len(mine), len(theirs))]
            return f"only one of them has {longer[0]}: {longer[1]}"
    return None
