"""The state of an engine's model: what is found on it, and how values travel."""

import random
import zlib
from typing import Any

import pytest
import torch

from modelexpress.engines.state import VALUES, apply_changes, changes, room_for_changes, tensors_of, values_of
from modelexpress.errors import UnsupportedModel

PACKAGES = (__name__,)


class Kernel:
    def __init__(self) -> None:
        self.packed = torch.arange(6)
        self.input_scale = 1.0
        self.workspace = torch.zeros(8)


class Method:
    """A quantisation method as engines have them, with a kernel of its own."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.scales = [torch.ones(2), torch.zeros(2)]
        self.is_static = False


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 4))
        self.register_buffer("table", torch.zeros(3), persistent=False)
        self.quant_method = Method()
        self.k_scale_float = 1.0
        self.layer_index = 3
        self.device_index = 0
        self.kv_cache = [torch.zeros(5)]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 4)
        self.layers = torch.nn.ModuleList([Layer(), Layer()])
        self.head = torch.nn.Linear(4, 8, bias=False)
        self.head.weight = self.embed.weight


def test_parameters_buffers_and_hidden_tensors_are_found_and_what_is_beside_the_weights_is_not() -> None:
    found = tensors_of(Model(), PACKAGES)
    layer = {f"layers.{n}.{name}" for n in range(2) for name in ("weight", "table")}
    hidden = {f"layers.{n}.quant_method.{name}" for n in range(2) for name in ("kernel.packed", "scales.0", "scales.1")}
    assert found.keys() == {"embed.weight", "head.weight"} | layer | hidden


def test_objects_of_other_packages_are_left_alone() -> None:
    assert not any("quant_method" in name for name in tensors_of(Model(), ("elsewhere",)))


def test_addresses_that_a_kernel_keeps_are_left_out() -> None:
    model = Model()
    kernel: Any = model.layers[0].quant_method.kernel  # type: ignore[union-attr]
    kernel.pointers = torch.tensor([model.embed.weight.data_ptr(), 0])
    assert "layers.0.quant_method.kernel.pointers" not in tensors_of(model, PACKAGES)


def test_what_loading_changed_is_set_at_the_target_and_nothing_else() -> None:
    source, target = Model(), Model()
    before = values_of(source, PACKAGES)
    first: Any = source.layers[0]
    first.k_scale_float, first.quant_method.is_static, first.quant_method.kernel.input_scale = 0.5, True, 0.25
    other: Any = target.layers[1]
    other.layer_index = 7  # differs for a reason of the target's own
    first.was_padded, first.quant_method.kernel.zero_point = True, 4  # what loading alone hangs on a model
    ((name, carried),) = changes(before, values_of(source, PACKAGES)).items()
    ((room_name, room),) = room_for_changes(before).items()
    assert name == room_name
    assert name.startswith(VALUES)
    assert room.shape == carried.shape
    assert apply_changes(target, PACKAGES, carried) == 5
    got: Any = target.layers[0]
    assert (got.k_scale_float, got.quant_method.is_static, got.quant_method.kernel.input_scale) == (0.5, True, 0.25)
    assert (got.was_padded, got.quant_method.kernel.zero_point) == (True, 4)
    assert other.layer_index == 7
    assert apply_changes(target, PACKAGES, carried) == 0


def test_models_that_were_made_with_other_values_do_not_fit() -> None:
    other: Any = Model()
    other.extra = 1
    names = [next(iter(room_for_changes(values_of(model, PACKAGES)))) for model in (Model(), other)]
    assert names[0] != names[1]
    assert "layers.0.device_index" not in values_of(other, PACKAGES)


def test_values_of_what_the_target_does_not_have_are_refused() -> None:
    carried = carrier({"layers.0.quant_method.cache.size": 3})
    with pytest.raises(UnsupportedModel, match=r"'layers\.0\.quant_method\.cache'"):
        apply_changes(Model(), PACKAGES, carried)


def test_what_torch_keeps_on_a_module_is_not_set() -> None:
    with pytest.raises(UnsupportedModel, match=r"'layers\.0\._parameters', which is torch's own"):
        apply_changes(Model(), PACKAGES, carrier({"layers.0._parameters": 3}))


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"layers.0.k_scale_float": "1"}', b"{"])
def test_what_no_source_writes_is_refused(text: bytes) -> None:
    carried = bytearray(zlib.compress(text)) if text else bytearray(8)
    with pytest.raises(UnsupportedModel, match="restart the source"):
        apply_changes(Model(), PACKAGES, torch.frombuffer(carried, dtype=torch.uint8))


def test_more_values_than_there_is_room_for_make_no_source() -> None:
    with pytest.raises(UnsupportedModel, match="100000 numbers and flags"):
        carrier({f"{random.random()}": random.random() for _ in range(100_000)})


def carrier(values: dict[str, bool | int | float]) -> torch.Tensor:
    (tensor,) = changes({}, values).values()
    return tensor
