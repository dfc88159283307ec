"""Finding the experts of a model: any module with stacked expert weights, by shape, by name, and by its gate.

A layer is the smallest module that has stacked weights (`stacks.py`) and something that knows how many experts there
are (`gates.py`). All of its large weights have a row for each of them, or all for each that this rank stores: that is
decided once for a layer, and only what fits belongs to its experts. This covers the mixture-of-experts models of
transformers 5, whose experts are such a module, and those of engines that stack their experts.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.gates import Count, Trust, all_experts, counts, router_tensors
from modelexpress.dwdp.layout import is_small
from modelexpress.dwdp.model import ExpertLayer, StackedTensor
from modelexpress.dwdp.reasons import check_complete, reason
from modelexpress.dwdp.stacks import Stack, full_bytes, is_stacked, large_weights, stacks_within
from modelexpress.errors import ExpertsUnsupported


def find_layers(model: nn.Module, config: DwdpConfig, granularity: int) -> list[ExpertLayer]:
    """Return the layers with experts, in the order of the model's modules.

    Args:
        model: Loaded with all experts, or with those that a rank stores.
        config: Says how many those are.
        granularity: Of the memory, in bytes.

    Raises:
        ExpertsUnsupported: There are none, or some are kept in another way.
    """
    # A module may be in several places of a model, and is used in each of them then.
    found = list({id(one.layer.block): one for one in _Search(config, granularity).within(model, "")}.values())
    layers = _served(found, config)
    if not layers:
        raise ExpertsUnsupported(reason(model, "", config))
    check_complete(model, [one.layer for one in found], config)
    return layers


def find_layer(module: nn.Module, name: str, config: DwdpConfig, granularity: int) -> ExpertLayer:
    """Return the one layer with experts within a module.

    Raises:
        ExpertsUnsupported: There is none, or more than one.
    """
    found = _served([*_Search(config, granularity).within(module, name)], config)
    if not found:
        raise ExpertsUnsupported(reason(module, name, config))
    if len(found) > 1:
        raise ExpertsUnsupported(
            f"{name or type(module).__name__} has {len(found)} layers with a gate and stacked experts, not one: "
            f"{', '.join(layer.name for layer in found)}"
        )
    return found[0]


class _Found(NamedTuple):
    """A layer that has been found.

    Args:
        layer: As it is shared.
        whole: Whether it was loaded with all experts.
        sure: Whether it tells by names that it has experts, not only by shapes.
    """

    layer: ExpertLayer
    whole: bool
    sure: bool


def _served(found: Sequence[_Found], config: DwdpConfig) -> list[ExpertLayer]:
    """Return what the group can share, and what it must be told that it cannot.

    Raises:
        ExpertsUnsupported: What a layer has may be experts that were loaded in part, or anything else.
    """
    fitting = [one for one in found if one.layer.num_experts == all_experts(config)]
    if not fitting:
        return [one.layer for one in found if one.sure] or [one.layer for one in found]
    for one in fitting:
        if not one.sure and not one.whole and any(other.sure for other in fitting):
            raise ExpertsUnsupported(
                f"{one.layer.name} has tensors of {config.num_experts_per_worker} rows beside a weight of "
                f"{one.layer.num_experts}, as experts that were loaded in part, but nothing in it is called so: "
                "choose another num_experts_per_worker, or name the layers with experts by add_layer(number, module)"
            )
    # Of other numbers of experts, what is whole stays as it is; what is not cannot be completed, and is refused later.
    return [one.layer for one in found if one in fitting or (one.sure and not one.whole)]


class _Search:
    """Goes through modules, the inner ones first.

    Args:
        config: Of the group. Only layers of one number of experts can be shared with it.
        granularity: Of the memory, in bytes.
    """

    def __init__(self, config: DwdpConfig, granularity: int) -> None:
        self._held, self._all, self._granularity = config.num_experts_per_worker, all_experts(config), granularity

    def within(self, module: nn.Module, name: str, *, alone: bool = True) -> Iterator[_Found]:
        """Return the layers within a module.

        Args:
            module: Is looked through.
            name: Its own, in the model.
            alone: Whether what it is in is no layer, but a list of layers.
        """
        several = isinstance(module, (nn.ModuleList, nn.Sequential))
        inner = [
            layer
            for child_name, child in module.named_children()
            for layer in self.within(child, f"{name}.{child_name}" if name else child_name, alone=several)
        ]
        if inner:
            yield from inner
        elif not isinstance(module, nn.ModuleList):
            yield from self._layer(module, name, alone)

    def _layer(self, block: nn.Module, name: str, alone: bool) -> Iterator[_Found]:
        stacks = stacks_within(block, name)
        if not stacks:
            return
        name = name or type(block).__name__
        rows = {weight.tensor.shape[0] for weight in large_weights(stacks, self._all, self._granularity)}
        said = counts(block, stacks, alone)
        if (count := self._decided(name, said, rows)) is None:
            return
        loaded = count.num_experts if count.num_experts in rows else self._held
        gates = [one.gate for one in said if one.gate is not None and one.num_experts == count.num_experts]
        layer = self._made(block, name, stacks, count.num_experts, loaded, gates)
        yield _Found(layer, loaded == count.num_experts, stacks[0].experts)

    def _made(
        self, block: nn.Module, name: str, stacks: Sequence[Stack], num_experts: int, loaded: int, gates: Sequence[str]
    ) -> ExpertLayer:
        stacked = [one for stack in stacks for one in stack.tensors() if self._belongs(one, num_experts, loaded)]
        if num_experts == self._all:
            self._check_rows(name, stacks, loaded)
            if loaded != num_experts:
                self._check_features(name, stacked)
        users = list({id(one.module): one.module for one in stacked}.values())
        router = router_tensors(block, gates, stacks, loaded) if loaded != num_experts else []
        weights = [one for one in stacked if not self._small(one, num_experts)]
        small = {id(one.tensor): one for one in (*stacked, *router) if self._small(one, num_experts)}
        return ExpertLayer(name, num_experts, block, users, weights, list(small.values()))

    def _decided(self, name: str, said: Sequence[Count], rows: set[int]) -> Count | None:
        """Return the most trusted number of experts that fits the rows of the weights.

        Raises:
            ExpertsUnsupported: Two of the same trust fit.
        """
        held = self._held in rows
        fit = [count for count in said if count.num_experts in rows or (held and count.num_experts == self._all)]
        fit.sort(key=lambda count: (-count.trust, count.num_experts != self._all))
        best = {count.num_experts for count in fit if count.trust == fit[0].trust}
        if self._held in best and self._all in best and self._all not in rows:
            raise ExpertsUnsupported(
                f"{name} has {self._held} rows in its stacked weights, and gates of {self._held} and of {self._all} "
                f"experts ({', '.join(str(count.gate) for count in fit)}): it may have been loaded whole or in part; "
                "choose another num_experts_per_worker"
            )
        # A part of another number of experts is refused with the numbers, by the configuration.
        other = (count for count in said if held and count.trust > Trust.BESIDE)
        return next(iter(fit), next(other, None))

    def _check_rows(self, name: str, stacks: Sequence[Stack], loaded: int) -> None:
        """Check that all large weights agree on what was loaded.

        Raises:
            ExpertsUnsupported: They do not.
        """
        weights = large_weights(stacks, self._all, self._granularity)
        first = next(one for one in weights if one.tensor.shape[0] == loaded)
        for other in weights:
            count = other.tensor.shape[0]
            counted = count in (self._held, self._all) or (stacks[0].experts and isinstance(other.tensor, nn.Parameter))
            if count != loaded and counted:
                raise ExpertsUnsupported(
                    f"{name}: {first.name} has {loaded} rows, and {other.name} {count}: all stacked weights of a layer "
                    f"have a row for each of its {self._all} experts, or all for each of the {self._held} that a rank "
                    "stores; where one of them is no weight of experts, choose another num_experts_per_worker"
                )

    def _check_features(self, name: str, stacked: Sequence[StackedTensor]) -> None:
        """Check that what is shared of a layer that was loaded in part has rows for experts, not for features.

        Raises:
            ExpertsUnsupported: It may be either. Small tensors are told apart by their values, when they are gathered.
        """
        large = [one for one in stacked if not self._small(one, self._all)]
        widths = {size for one in large if is_stacked(one.tensor) for size in one.tensor.shape[1:]}
        for one in large:
            if not is_stacked(one.tensor) and self._held in widths:
                raise ExpertsUnsupported(
                    f"{name}: {one.name} has {self._held} rows, as many as a rank stores experts, and as an expert has "
                    "features: choose another num_experts_per_worker, or load all experts"
                )

    def _belongs(self, one: StackedTensor, num_experts: int, loaded: int) -> bool:
        """Return whether a tensor of a module with stacked weights has a row for each expert."""
        tensor = one.tensor
        if not tensor.dim():
            return False
        # What is whole beside weights that are not is of no rank alone: small tensors may be loaded so.
        return tensor.shape[0] == loaded or (tensor.shape[0] == num_experts and self._small(one, num_experts))

    def _small(self, one: StackedTensor, num_experts: int) -> bool:
        return is_small(full_bytes(one.tensor, num_experts), self._granularity)


def check_model(model: nn.Module) -> None:
    """Refuse what moves experts behind our back.

    Raises:
        ExpertsUnsupported: The model balances its experts' load by moving them.
    """
    for name, module in model.named_modules():
        if getattr(module, "enable_eplb", False) or getattr(module, "layer_load_balancer", None) is not None:
            raise ExpertsUnsupported(
                f"{name or type(model).__name__} balances load by moving experts between ranks: switch that off, all "
                "ranks see all experts"
            )


def numbered_layer(model: nn.Module, number: int) -> nn.Module:
    """Return a layer of a model by its number, in the first list called `layers` that has stacked weights.

    Raises:
        ExpertsUnsupported: There is no such layer.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or name.rpartition(".")[2] != "layers":
            continue
        if 0 <= number < len(module) and any(tensor.dim() >= 3 for tensor in module.parameters()):
            return module[number]
    raise ExpertsUnsupported(f"{type(model).__name__} has no layer {number} with experts: pass its module to add_layer")
