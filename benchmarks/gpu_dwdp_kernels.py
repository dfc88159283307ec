"""What every variant of a mixture-of-experts layer is computed with: grouped products, and two kernels beside them."""

# mypy: disallow-untyped-decorators=False

from types import ModuleType
from typing import Any

import torch
from torch.nn import functional

try:
    import triton as _triton
    import triton.language as _tl

    triton: ModuleType | None = _triton
    tl: Any = _tl
except ImportError:  # without a GPU there is none; torch computes the same then
    triton = None

if triton is not None:

    @triton.jit
    def _gated_kernel(given, out, width, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * block + tl.arange(0, block)
        inside = column < width
        gate = tl.load(given + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(given + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(tl.bfloat16), mask=inside)

    @triton.jit
    def _joined_kernel(found, places, shares, out, width, count: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * block + tl.arange(0, block)
        inside = column < width
        total = tl.zeros((block,), tl.float32)
        for number in tl.static_range(count):
            place = tl.load(places + row * count + number).to(tl.int64)
            share = tl.load(shares + row * count + number)
            total += share * tl.load(found + place * width + column, mask=inside & (place >= 0), other=0.0)
        tl.store(out + row * width + column, total.to(tl.bfloat16), mask=inside)


def gated(given: torch.Tensor) -> torch.Tensor:
    """Return silu of the first half of each row times its second half; rows × width."""
    rows, width = given.shape[0], given.shape[1] // 2
    if triton is None or given.device.type == "cpu":
        return functional.silu(given[:, :width]) * given[:, width:]
    out = torch.empty((rows, width), dtype=given.dtype, device=given.device)
    if rows:
        block = min(1024, triton.next_power_of_2(width))
        _gated_kernel[(rows, triton.cdiv(width, block))](given, out, width, block=block)
    return out


def joined(found: torch.Tensor, places: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return weighted sums of rows.

    Args:
        found: Rows of bfloat16.
        places: Of each sum's rows in `found`, sums × count; -1 where there is none.
        shares: What each row counts, float32, of the same shape.
    """
    sums, count = places.shape
    width = found.shape[1]
    if triton is None or found.device.type == "cpu":
        rows = found[places.clamp(min=0).flatten()].view(sums, count, width).float()
        return (rows * (shares * (places >= 0)).unsqueeze(-1)).sum(1).to(found.dtype)
    out = torch.empty((sums, width), dtype=found.dtype, device=found.device)
    if sums:
        block = min(2048, triton.next_power_of_2(width))
        grid = (sums, triton.cdiv(width, block))
        _joined_kernel[grid](found, places, shares, out, width, count=count, block=block)
    return out


def products(rows: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Return what each expert makes of its rows.

    Args:
        rows: In order of experts, rows × hidden.
        gate_up: experts × 2·intermediate × hidden.
        down: experts × hidden × intermediate.
        ends: Where each expert's rows end, int32.
    """
    inner = gated(torch._grouped_mm(rows, gate_up.transpose(1, 2), offs=ends))
    return torch._grouped_mm(inner, down.transpose(1, 2), offs=ends)


def by_expert(keys: torch.Tensor, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order that puts keys side by side, and where each of the first `experts` keys ends there."""
    ordered, order = keys.to(torch.int16).sort(stable=True)
    wanted = torch.arange(experts, dtype=torch.int16, device=keys.device)
    return order, torch.searchsorted(ordered, wanted, right=True, out_int32=True)
