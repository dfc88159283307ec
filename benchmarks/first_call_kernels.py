"""Triton kernels that are tuned when they are first called, each over several shapes of blocks."""

# ruff: noqa: ANN001, N803 -- the arguments of a kernel are Triton's, and its constants are written large
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl

_ROWS = [
    triton.Config({"BLOCK": block}, num_warps=warps) for block in (256, 512, 1024, 2048, 4096) for warps in (2, 4, 8)
]
_TILES = [
    triton.Config({"ROWS": rows, "COLUMNS": columns, "DEPTH": 64}, num_warps=warps, num_stages=stages)
    for rows, columns in ((64, 64), (64, 128), (128, 128))
    for warps in (4, 8)
    for stages in (2, 3)
]


@triton.autotune(configs=_ROWS, key=["count"], cache_results=True)
@triton.jit
def _gated(gate, up, out, count, BLOCK: tl.constexpr) -> None:
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    left = tl.load(gate + place, mask=inside).to(tl.float32)
    right = tl.load(up + place, mask=inside).to(tl.float32)
    tl.store(out + place, (left * tl.sigmoid(left) * right).to(tl.bfloat16), mask=inside)


@triton.autotune(configs=_TILES, key=["size"], cache_results=True)
@triton.jit
def _product(left, right, out, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr) -> None:
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for start in range(0, size, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        a = tl.load(left + row[:, None] * size + depth[None, :])
        b = tl.load(right + depth[:, None] * size + column[None, :])
        total += tl.dot(a, b)
    tl.store(out + row[:, None] * size + column[None, :], total.to(tl.bfloat16))


def call_all(device: str) -> float:
    """Call each kernel with three sizes, and return a checksum of what they computed."""
    torch.manual_seed(0)
    checksum = 0.0
    for size in (1024, 2048, 4096):
        left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
        out = torch.empty_like(left)
        count = left.numel()
        _gated[lambda chosen, count=count: (triton.cdiv(count, chosen["BLOCK"]),)](left, right, out, count)
        checksum += float(out.double().sum())
        _product[lambda chosen, size=size: (size // chosen["ROWS"], size // chosen["COLUMNS"])](left, right, out, size)
        checksum += float(out.double().sum())
    torch.cuda.synchronize()
    return checksum
