"""Expert parallelism over all-to-all, for comparison: a token travels once to each rank that has experts of it.

What comes back is that rank's weighted sum, so a token returns once, too. All ranks need the sizes of what they get, so
the host waits once in each layer. Sorting, products and sums are those of the other variants.
"""

# mypy: untyped-calls-exclude=torch

from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.gpu_dwdp_kernels import by_expert, joined, products
from benchmarks.gpu_dwdp_model import Experts


class ParallelExperts(nn.Module):
    """This rank's part of a layer's experts, asked by all ranks at the same time.

    Args:
        full: Has all of them; only this rank's are used.
        experts: How many there are.
    """

    def __init__(self, full: Experts, experts: int) -> None:
        super().__init__()
        self._ranks, self._per_rank = dist.get_world_size(), experts // dist.get_world_size()
        start = dist.get_rank() * self._per_rank
        self._gate_up = full.gate_up[start : start + self._per_rank]
        self._down = full.down[start : start + self._per_rank]

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of what each token's experts make of it, tokens × hidden."""
        owners = chosen // self._per_rank
        goes = torch.zeros(self._ranks, len(hidden), dtype=torch.bool, device=hidden.device)
        goes.scatter_(0, owners.t(), True)
        counts = _on_the_way(self._counts(goes, owners))
        places = goes.flatten().cumsum(0).sub_(1).masked_fill_(~goes.flatten(), -1)
        tokens, asks = self._asks(chosen, shares, places)
        # What needs no sizes is enqueued by now: the device has work while the host reads them.
        mine, theirs = counts()
        sent, received = [rows for rows, _ in mine], [rows for rows, _ in theirs]
        total = sum(sent)
        asked = _exchange(hidden.index_select(0, tokens[:total]), sent, received)
        asked_for = _exchange(asks[:total], sent, received)
        answers = self._compute(asked, asked_for, sum(pairs for _, pairs in theirs))
        returned = _exchange(answers, received, sent)
        places = places.view(self._ranks, -1).t().contiguous()
        return joined(returned, places, torch.ones(places.shape, device=places.device))

    def _counts(self, goes: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
        """Return, of what goes to each rank and of what comes from each, tokens and products; 2 × ranks × 2."""
        of_rank = torch.arange(self._ranks, device=owners.device)
        pairs = (owners.flatten().unsqueeze(0) == of_rank.unsqueeze(1)).sum(1)
        mine = torch.stack([goes.sum(1), pairs], 1)
        theirs = torch.empty_like(mine)
        dist.all_to_all_single(theirs, mine)
        return torch.stack([mine, theirs])

    def _asks(
        self, chosen: torch.Tensor, shares: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens are sent, in order of ranks, and what is asked of each: experts or -1, and their shares.

        Shares are the bits of integers there. What is behind the last token that is sent means nothing.
        """
        most, count = len(places), len(chosen)
        sources = torch.zeros(most + 1, dtype=torch.int64, device=chosen.device)
        everything = torch.arange(most, device=chosen.device)
        sources.scatter_(0, torch.where(places < 0, most, places), everything)
        ranks, tokens = sources[:most] // count, sources[:most] % count
        local = chosen[tokens] - (ranks * self._per_rank).unsqueeze(1)
        local = torch.where((local < 0) | (local >= self._per_rank), -1, local).to(torch.int32)
        return tokens, torch.cat([local, shares[tokens].view(torch.int32)], 1)

    def _compute(self, hidden: torch.Tensor, asks: torch.Tensor, pairs: int) -> torch.Tensor:
        local, shares = asks.chunk(2, dim=1)
        keys = torch.where(local < 0, self._per_rank, local).flatten()
        order, ends = by_expert(keys, self._per_rank)
        order = order[:pairs]
        found = products(hidden.index_select(0, order // local.shape[1]), self._gate_up, self._down, ends)
        places = torch.full(keys.shape, -1, dtype=torch.int64, device=keys.device)
        places[order] = torch.arange(pairs, device=keys.device)
        return joined(found, places.view(local.shape), shares.contiguous().view(torch.float32))


def _on_the_way(counts: torch.Tensor) -> Callable[[], list[list[list[int]]]]:
    """Return what waits for numbers that are being copied to the host, and for nothing that is enqueued later."""
    here = counts.to("cpu", non_blocking=True)
    if counts.device.type == "cpu":
        return here.tolist
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> list[list[list[int]]]:
        copied.synchronize()
        return cast(list[list[list[int]]], here.tolist())

    return wait


def _exchange(rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
    """Send so many rows to each rank, and return those that came, in order of ranks."""
    found = torch.empty(sum(received), *rows.shape[1:], dtype=rows.dtype, device=rows.device)
    dist.all_to_all_single(found.view(torch.uint8), rows.contiguous().view(torch.uint8), received, sent)
    return found
