"""A fresh process that calls compiled code for the first time, and says how long that took; see first_call.py."""

# mypy: untyped-calls-exclude=torch

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn

from modelexpress.artifacts.kinds import KINDS
from modelexpress.artifacts.lifecycle import bring, share_when_ready
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings

_USED = tuple(kind for kind in KINDS if kind.name in ("torch_compile", "triton"))


class Block(nn.Module):
    """A decoder block: normalised attention and a gated feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 8 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the hidden states, of shape [batch, tokens, width], after the block."""
        batch, tokens, width = hidden.shape
        split = self.attention(self.first(hidden)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        gate, up = self.gate_up(self.second(hidden)).chunk(2, dim=-1)
        result: torch.Tensor = hidden + self.down(nn.functional.silu(gate) * up)
        return result


def call_block(device: str) -> float:
    """Compile the block, call it, and return a checksum."""
    torch.manual_seed(0)
    width, dtype = (2048, torch.bfloat16) if device == "cuda" else (256, torch.float32)
    block = Block(width, width // 128).to(device=device, dtype=dtype)
    compiled = torch.compile(block, mode="max-autotune-no-cudagraphs" if device == "cuda" else None)
    with torch.no_grad():
        return float(compiled(torch.randn(2, 512, width, device=device, dtype=dtype)).double().sum())


def call_kernels(device: str) -> float:
    """Tune and call the Triton kernels, and return a checksum."""
    from benchmarks.first_call_kernels import call_all

    return call_all(device)


def main() -> None:
    """Bring caches if told to, make the calls, say what they took, and share if told to until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--bring", action="store_true")
    parser.add_argument("--share", action="store_true")
    given = parser.parse_args()
    settings = Settings.read()
    if given.device == "cuda":
        torch.zeros(1, device="cuda")  # the device's own start is no part of this
    identity = SourceIdentity(
        model_name="first-call", torch_version=torch.__version__, gpu_arch=_architecture(given.device)
    )
    started = time.perf_counter()
    if given.bring:
        brought = bring(identity, _USED, settings)
        assert any(cache.report is not None for cache in brought.caches), [cache.reason for cache in brought.caches]
        brought.close()
    bringing = time.perf_counter() - started
    calls: Mapping[str, Callable[[str], float]] = {"block": call_block}
    if given.device == "cuda":
        calls = {**calls, "kernels": call_kernels}
    parts, checksums = {}, {}
    for name, call in calls.items():
        started = time.perf_counter()
        checksums[name] = call(given.device)
        parts[name] = time.perf_counter() - started
    sharing = None
    if given.share:
        ready = threading.Event()
        ready.set()
        sharing = share_when_ready(identity, _USED, settings, ready)
        assert sharing is not None
        assert sharing.wait_offered(60)
    machine = torch.cuda.get_device_name() if given.device == "cuda" else "the processor"
    fields = {"bringing": bringing, "parts": parts, "checksums": checksums, "machine": machine}
    print(json.dumps(fields), flush=True)
    sys.stdin.read()
    if sharing is not None:
        sharing.close()


def _architecture(device: str) -> str:
    if device == "cpu":
        return "cpu"
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


if __name__ == "__main__":
    main()
