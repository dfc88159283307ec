"""Why the experts of a model cannot be shared: what it has in the place of stacked experts with a gate."""

from collections.abc import Iterator, Sequence

from torch import nn

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.gates import all_experts
from modelexpress.dwdp.model import ExpertLayer
from modelexpress.dwdp.stacks import has_stacked, is_stacked, names_experts, own_tensors, says_experts
from modelexpress.errors import ExpertsUnsupported


def reason(module: nn.Module, name: str, config: DwdpConfig) -> str:
    """Say why nothing in a module can be shared.

    Args:
        module: A model, or a layer of it.
        name: Of the layer; "" for a model.
        config: Of the group.
    """
    subject = f"{name or type(module).__name__} has no layer with a gate and stacked experts"
    if (apart := next(_apart(module, name), None)) is not None:
        return f"{subject}: {_told_apart(*apart)}"
    if (stacked := next(_stacked(module, name), None)) is None:
        return f"{subject} ([experts, …] in one parameter){_flat(module, name)}"
    if _rows(stacked[1]) & {config.num_experts_per_worker, all_experts(config)}:
        return f"{subject}: {_told_ungated(*stacked, config)}"
    return (
        f"{subject} ([experts, …] in one parameter) that fit num_experts_per_worker={config.num_experts_per_worker}: "
        f"{stacked[0]} holds {_shapes(stacked[1])}, and a rank stores {config.num_experts_per_worker} of "
        f"{all_experts(config)}"
    )


def check_complete(model: nn.Module, layers: Sequence[ExpertLayer], config: DwdpConfig) -> None:
    """Check that no experts but those of the layers that were found are in a model.

    Raises:
        ExpertsUnsupported: Some are kept in another way: every rank would keep all of them.
    """
    users = {id(user) for layer in layers for user in layer.users}
    for name, experts in _apart(model, ""):
        if not any(id(module) in users for module in experts.modules()):
            raise ExpertsUnsupported(_told_apart(name, experts))
    known = {id(module) for layer in layers for module in layer.block.modules()}
    for name, stack in _stacked(model, ""):
        if id(stack) not in known and _rows(stack) & {config.num_experts_per_worker, all_experts(config)}:
            raise ExpertsUnsupported(_told_ungated(name, stack, config))


def _apart(model: nn.Module, above: str) -> Iterator[tuple[str, nn.ModuleList | nn.ModuleDict]]:
    """Return lists of experts that are modules each."""
    for name, module in model.named_modules(prefix=above):
        listed = isinstance(module, (nn.ModuleList, nn.ModuleDict)) and len(module) > 1
        if listed and names_experts(name.rpartition(".")[2]) and any(True for _ in module.parameters()):
            yield name, module


def _stacked(model: nn.Module, above: str) -> Iterator[tuple[str, nn.Module]]:
    """Return modules with stacked weights that say that these are experts."""
    for name, module in model.named_modules(prefix=above):
        if has_stacked(module) and says_experts(".".join(name.split(".")[-2:]), module):
            yield name, module


def _rows(module: nn.Module) -> set[int]:
    return {tensor.shape[0] for _, tensor in own_tensors(module) if is_stacked(tensor)}


def _told_apart(name: str, experts: nn.ModuleList | nn.ModuleDict) -> str:
    return (
        f"{name} keeps {len(experts)} experts apart, in modules of their own: stack them, each of their weights in one "
        "parameter [experts, …]"
    )


def _told_ungated(name: str, module: nn.Module, config: DwdpConfig) -> str:
    experts = all_experts(config)
    return (
        f"{name} holds {_shapes(module)}, but no gate of {experts} experts is around it (a module beside it with a "
        f"weight of {experts} rows, which is called gate or router where it is further in), nor does it say "
        f"num_experts={experts}: give it that attribute"
    )


def _flat(model: nn.Module, above: str) -> str:
    """Say what looks like experts, but has no dimension for them."""
    for name, module in model.named_modules(prefix=above):
        if names_experts(name.rpartition(".")[2]) and any(tensor.dim() == 2 for _, tensor in own_tensors(module)):
            return f": {name} holds {_shapes(module)}, without a dimension for experts"
    return ""


def _shapes(module: nn.Module) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in own_tensors(module))
