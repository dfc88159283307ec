"""Modules of an engine's own: their parameters show a layer's experts, as the model's do, for as long as that lasts."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from modelexpress.dwdp.guard import Guard
from modelexpress.dwdp.model import ExpertLayer, StackedTensor, bind
from modelexpress.dwdp.views import tensor_at
from modelexpress.errors import DwdpError


class OwnModules:
    """Lets parameters show what those of the same name in the model do.

    Args:
        layers: In order of use; their weights show all experts.
        held: Experts that a rank stores of each layer: a parameter may have rows for them, for all, or none yet.
        guard: Refuses what would take these parameters for a whole.
    """

    def __init__(self, layers: Sequence[ExpertLayer], held: int, guard: Guard) -> None:
        self._layers, self._held, self._guard = layers, held, guard
        self._shown: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def show(self, module: nn.Module, position: int) -> None:
        """Let a module's parameters of the names of a layer's stacked tensors show all experts.

        Args:
            module: Where it has a parameter of such a name for something else, that stays as it is.
            position: Of the layer.

        Raises:
            DwdpError: A parameter may stand for several tensors of the layer.
        """
        layer = self._layers[position]
        both = (*layer.weights, *layer.small)
        for attribute in dict.fromkeys(one.attribute for one in both):
            tensor = getattr(module, attribute, None)
            if not isinstance(tensor, torch.Tensor) or any(_is_same(tensor, one.tensor) for one in both):
                continue
            named = (one for one in both if one.attribute == attribute)
            if (found := self._the_one(tensor, named, layer)) is not None:
                self._show(tensor, found.tensor)
                if found in layer.weights:
                    self._guard.modules([module])
                    self._guard.tensor(tensor, f"{layer.name}: {found.name}")

    def close(self) -> None:
        """Let all of them show what they did before. Closing twice is allowed."""
        while self._shown:
            tensor, before, _ = self._shown.pop()
            bind(tensor, lambda before=before: before)  # type: ignore[misc]

    def _the_one(
        self, tensor: torch.Tensor, named: Iterable[StackedTensor], layer: ExpertLayer
    ) -> StackedTensor | None:
        """Return what a parameter stands for."""
        rows = {0, self._held, layer.num_experts}
        if not tensor.dim() or tensor.shape[0] not in rows:
            return None
        kind = (tensor.dtype, tensor.dim(), tensor.shape[1:])
        fitting = [one for one in named if (one.tensor.dtype, one.tensor.dim(), one.tensor.shape[1:]) == kind]
        if len(fitting) > 1:
            raise DwdpError(
                f"{layer.name}: {' and '.join(one.name for one in fitting)} are alike, and the module's own "
                f"{fitting[0].attribute} may be any of them: compute with the model's modules, and call wait instead"
            )
        return fitting[0] if fitting else None

    def _show(self, tensor: torch.Tensor, full: torch.Tensor) -> None:
        self._shown.append((tensor, tensor.data, full.data))  # whoever shows memory keeps it
        bind(tensor, lambda: tensor_at(full.data_ptr(), full.shape, full.stride(), full.dtype, full.device))


def _is_same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor is other or (tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape)
