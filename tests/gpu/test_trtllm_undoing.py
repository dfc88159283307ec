"""What a transfer into device memory has written is undone where it fails, and the memory of copies is given back."""

import pytest
import torch

from modelexpress.engines.trtllm.undoing import undone_on_error
from modelexpress.errors import LoadError, PartialModel

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

COUNT = 64 << 20
"""Elements of a large tensor, of four bytes each."""


def test_tensors_on_a_device_get_their_values_back() -> None:
    large, small = torch.ones(COUNT, device="cuda"), torch.arange(5, device="cuda", dtype=torch.uint8)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()

    def fail() -> None:
        with undone_on_error([large, small]):
            assert torch.cuda.memory_reserved() >= before + large.nbytes
            large.fill_(2)
            small.fill_(2)
            raise PartialModel("some were overwritten")

    with pytest.raises(LoadError) as caught:
        fail()
    assert not isinstance(caught.value, PartialModel)
    assert float(large.sum()) == COUNT
    assert small.tolist() == [0, 1, 2, 3, 4]
    assert torch.cuda.memory_reserved() <= before


def test_a_device_that_has_no_more_memory_gets_no_copies() -> None:
    large = torch.ones(COUNT, device="cuda")
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + large.nbytes // 2) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        with pytest.raises(PartialModel, match="start this replica again"), undone_on_error([large]):
            raise PartialModel("some were overwritten")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
