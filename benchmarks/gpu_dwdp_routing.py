"""Which experts tokens choose: all alike, or some ranks' experts more often than others'."""

from collections.abc import Sequence

import torch

PATTERNS = 4
"""Tables of one routing; layers take them in turn, and the busiest rank is another one in each."""
_STEPS = 12


def wanted_loads(ranks: int, variation: float) -> torch.Tensor:
    """Return the load of each rank over the mean: evenly spread, with a coefficient of variation."""
    spread = torch.linspace(-1, 1, ranks)
    return 1 + spread * (variation / max(float(spread.std(correction=0)), 1e-9))


def tables(
    tokens: int, experts: int, top_k: int, ranks: int, variation: float, seed: int, device: torch.device
) -> tuple[Sequence[torch.Tensor], float]:
    """Return what the gates' findings are added to, tokens × experts each, and the variation that comes of it.

    Args:
        tokens: Of a rank.
        experts: Of a layer, spread over the ranks.
        top_k: Experts of a token.
        ranks: That hold experts.
        variation: Standard deviation over mean of the ranks' loads.
        seed: Of the rank: each has tokens of its own.
        device: Where they are.
    """
    generator = torch.Generator(device).manual_seed(seed)
    found, reached = [], 0.0
    owners = torch.arange(experts, device=device) * ranks // experts
    for number in range(PATTERNS):
        noise = torch.rand(tokens, experts, generator=generator, device=device)
        noise = -(-noise.clamp(1e-9, 1 - 1e-7).log()).log()
        wanted = wanted_loads(ranks, variation).roll(number).to(device)
        bias = torch.zeros(ranks, device=device)
        for _ in range(_STEPS if variation else 1):
            loads = _loads(noise[:4096] + bias[owners], top_k, owners)
            bias += (wanted / loads).log() if variation else 0.0
        table = noise + bias[owners]
        reached += float(_loads(table, top_k, owners).std(correction=0)) / PATTERNS
        found.append(table)
    return found, reached


def _loads(table: torch.Tensor, top_k: int, owners: torch.Tensor) -> torch.Tensor:
    counts = owners[table.topk(top_k).indices.flatten()].bincount(minlength=int(owners[-1]) + 1).float()
    return counts / counts.mean()
