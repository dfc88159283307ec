"""A target's catalogue and rooms, without any source: manifests are made up."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from modelexpress.errors import NoRoom, UnsupportedModel
from modelexpress.memory import HostArena
from modelexpress.transfer.manifest import Manifest, Scope, contiguous_strides
from modelexpress.weights.catalog import catalogue
from modelexpress.weights.settle import settle
from modelexpress.weights.target import Target
from modelexpress.wire.records import TensorSpec
from modelexpress.wire.tensors import Tensors


def manifest_of(*specs: TensorSpec) -> Manifest:
    """Return a manifest of one region, in which nothing is sure but the tensors."""
    return Manifest(Scope.MODULE, 1 << 20, (1 << 16,), Tensors.of(specs), np.zeros(len(specs), np.uint64))


def spec(name: str, tensor: torch.Tensor, strides: tuple[int, ...] | None = None) -> TensorSpec:
    shape = tuple(tensor.shape)
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, dtype, shape, strides or contiguous_strides(shape), 0, 0, tensor.nbytes)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.same = self.inner
        self.nothing = None
        self.register_parameter("absent", None)
        self.register_buffer("kept", torch.ones(3))
        self.inner.register_buffer("left_out", torch.ones(2), persistent=False)


def test_a_module_is_listed_under_all_of_its_names() -> None:
    model = Nested()
    found = catalogue(model)
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    buffers = [name for name, _ in model.named_buffers(remove_duplicate=False)]
    assert list(found.names) == parameters + buffers
    assert [name for name, kept in zip(found.names, found.persistent, strict=True) if not kept] == [
        "inner.left_out",
        "same.left_out",
    ]
    assert len(set(found.memories.tolist())) == 4


def test_memories_are_told_apart_by_address_and_by_the_order_of_the_elements() -> None:
    square, empty = torch.zeros(4, 4), torch.zeros(0)
    number = torch.zeros(2, dtype=torch.complex64)
    model = {
        "a": square,
        "b": square.detach(),
        "c": square.T,
        "d": square.view(torch.int32),
        "e": square[0],
        "f": empty,
        "g": empty,
        "h": torch.zeros(0),
        "i": number,
        "j": number.conj(),
    }
    found = catalogue(model)
    groups: dict[int, str] = {}
    for name, memory in zip(found.names, found.memories.tolist(), strict=True):
        groups[memory] = groups.get(memory, "") + name
    assert sorted(groups.values()) == ["ab", "c", "d", "e", "fg", "h", "i", "j"]


@pytest.mark.parametrize(
    "make",
    [lambda: torch.eye(3).to_sparse(), lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)],
    ids=["sparse", "quantised"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_without_plain_memory_are_refused(make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(UnsupportedModel, match="tensor 'odd' is torch"):
        catalogue({"plain": torch.ones(2), "odd": make()})


def test_names_that_are_no_text_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="rename it"):
        catalogue({"ä": torch.ones(2), "\ud800": torch.ones(2)})


def test_tied_tensors_are_opened_once_under_the_name_that_the_source_has() -> None:
    weight, other = torch.zeros(4), torch.zeros(4)
    target = Target({"head": weight, "embed": weight, "norm": other})
    manifest = manifest_of(spec("norm", other), spec("embed", weight))
    (rooms,) = target.open(manifest).values()
    assert dict(zip(rooms.positions.tolist(), rooms.addresses.tolist(), strict=True)) == {
        0: other.data_ptr(),
        1: weight.data_ptr(),
    }
    assert target.written
    assert target.memories == 2


def test_the_tensor_that_is_filled_for_a_tied_one() -> None:
    weight, other = torch.zeros(4), torch.zeros(4)
    target = Target({"head": weight, "norm": other, "embed": weight})
    manifest = manifest_of(spec("norm", other), spec("embed", weight), spec("head", weight))
    assert target.filled(manifest).tolist() == [0, 2, 2]


def test_a_tensor_received_beside_the_model_is_forgotten_with_its_source() -> None:
    weight = torch.zeros(2, 3)
    target = Target({"w": weight})
    (beside,) = target.open(manifest_of(spec("w", weight, (1, 2)))).values()
    assert target.staged == {"w"}
    assert not target.written
    assert beside.addresses[0] != weight.data_ptr()
    (in_place,) = target.open(manifest_of(spec("w", weight))).values()
    assert in_place.addresses[0] == weight.data_ptr()
    assert target.staged == frozenset()
    weight.fill_(1)
    target.commit()
    assert weight.eq(1).all(), "what the first source left unfinished went nowhere"


def test_dimensions_of_one_element_have_any_stride() -> None:
    weight = torch.zeros(1, 3)
    target = Target({"w": weight})
    target.open(manifest_of(spec("w", weight, (77, 1))))
    assert not target.staged


def test_rooms_are_where_the_memory_is_when_they_are_opened() -> None:
    weight = torch.zeros(4)
    target = Target({"w": weight})
    settle(target.settled_entries())
    (rooms,) = target.open(manifest_of(spec("w", weight))).values()
    assert rooms.addresses[0] == weight.data_ptr()
    assert HostArena.holding(weight.data_ptr(), 16)


def test_tensors_without_memory_can_be_offered_as_they_will_be() -> None:
    model = {"w": torch.empty(2, 3, device="meta").T, "b": torch.empty(0, device="meta")}
    target = Target(model)
    settled = settle(target.settled_entries())
    assert [tensor.strides for tensor in settled.tensors if tensor.name == "w"] == [(1, 3)]
    manifest = manifest_of(spec("w", model["w"], (1, 3)))
    (rooms,) = target.open(manifest).values()
    (region,), (offset,) = settled.places(["w"])
    assert settled.regions[region].address + offset == rooms.addresses[0]
    assert not target.written
    target.commit()
    assert model["w"].data_ptr() == rooms.addresses[0]
    assert model["w"].stride() == (1, 3)


def test_settled_tensors_are_listed_in_the_order_of_their_memory() -> None:
    flat = torch.arange(100.0)
    gaps = torch.arange(20.0)[::2]
    model = {"late": flat[50:], "early": flat[:50], "gaps": gaps, "empty": torch.zeros(0, 3)}
    settled = settle(catalogue(model))
    places = [(tensor.region, tensor.offset) for tensor in settled.tensors]
    assert places == sorted(places)
    for tensor in settled.tensors:
        content = settled.regions[tensor.region].view()[tensor.offset : tensor.offset + tensor.nbytes]
        assert bytes(content) == model[tensor.name].contiguous().numpy().tobytes()
        assert tensor.strides == contiguous_strides(tensor.shape)


def test_a_device_without_room_for_the_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    target = Target({"w": torch.empty(1 << 20, device="meta")}, "cuda")
    monkeypatch.setattr(torch, "empty_strided", full)
    with pytest.raises(NoRoom, match=r"does not fit on 'cuda'.*out of memory"):
        target.settled_entries()


def test_what_is_about_to_be_overwritten_need_not_move_along() -> None:
    weight = torch.ones(1000)
    model = {"weight": weight}
    settle(catalogue(model), keep=False)
    assert HostArena.holding(weight.data_ptr(), weight.nbytes) is not None
    assert not weight.any()
