"""Small tensors of an engine are parted from what is offered of them."""

import torch

from modelexpress.weights.parting import SMALL_BYTES, part_small


def test_what_is_offered_stays_as_it_was_and_the_engine_goes_on_with_the_same_values() -> None:
    scale = torch.nn.Parameter(torch.arange(6.0).view(2, 3), requires_grad=False)
    offered = scale.detach()
    part_small([scale])
    assert torch.equal(scale, offered)
    scale.data.fill_(7)
    assert torch.equal(offered, torch.arange(6.0).view(2, 3))


def test_views_of_one_storage_go_on_sharing_it() -> None:
    whole = torch.arange(8.0)
    rows, column = whole.view(2, 4), whole.view(2, 4)[:, 1]
    offered = whole.detach()
    part_small([rows, column])
    column.fill_(-1)
    assert rows[:, 1].tolist() == [-1, -1]
    assert column.stride() == (4,)
    assert torch.equal(offered, torch.arange(8.0))


def test_large_tensors_keep_their_memory_and_empty_ones_do_no_harm() -> None:
    large, empty = torch.zeros(SMALL_BYTES + 1, dtype=torch.uint8), torch.empty(0)
    before = large.data_ptr()
    part_small([large, empty, torch.empty(4, device="meta")])
    assert large.data_ptr() == before
