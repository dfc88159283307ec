"""What a transfer has written is undone where it fails: whatever the tensors are, and whatever the error is."""

import pytest
import torch

from modelexpress.engines.trtllm import undoing
from modelexpress.engines.trtllm.undoing import undone_on_error
from modelexpress.errors import LoadError, NoSourceFound, PartialModel


def tensors() -> list[torch.Tensor]:
    """Return tensors of several kinds, one of which needs gradients."""
    return [
        torch.arange(24.0).reshape(4, 6).t(),
        torch.arange(7, dtype=torch.uint8).view(torch.float8_e4m3fn),
        torch.tensor([True, False]),
        torch.empty(0, 3),
        torch.tensor(3, dtype=torch.int64),
        torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)),
    ]


def content(found: list[torch.Tensor]) -> list[list[int]]:
    return [tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for tensor in found]


def overwrite(found: list[torch.Tensor]) -> None:
    for tensor in found:
        (tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor).detach().fill_(99)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(PartialModel("some were overwritten"), LoadError), (ZeroDivisionError(), ZeroDivisionError)],
)
def test_tensors_get_their_values_back(error: Exception, raised: type[Exception]) -> None:
    found = tensors()

    def fail() -> None:
        with undone_on_error(found):
            overwrite(found)
            assert content(found) != content(tensors())
            raise error

    with pytest.raises(raised) as caught:
        fail()
    assert content(found) == content(tensors())
    assert not isinstance(caught.value, PartialModel)


@pytest.mark.parametrize("error", [PartialModel("some were overwritten"), ZeroDivisionError("it failed")])
def test_without_copies_nobody_takes_the_model_for_whole(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undoing, "_room", lambda _: 0)
    with pytest.raises(PartialModel, match=f"start this replica again.*{error}"), undone_on_error(tensors()):
        raise error


@pytest.mark.parametrize("room", [0, float("inf")])
def test_an_error_before_anything_was_written_stays_what_it_is(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undoing, "_room", lambda _: room)
    with pytest.raises(NoSourceFound, match=r"^nobody$"), undone_on_error(tensors()):
        raise NoSourceFound("nobody")


def test_what_succeeds_is_left_alone() -> None:
    found = tensors()
    with undone_on_error(found):
        overwrite(found)
    assert found[0].tolist() == [[99.0] * 4] * 6
