"""Ranks that share the experts of a Qwen3-MoE of transformers: the same outputs, to the bit, and when what took place.

    torchrun --nproc-per-node 2 examples/dwdp_transformers.py --chart timeline.svg

The model is tiny and its weights are random. It runs on the CPU; with --device cuda each rank takes a GPU.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from modelexpress.dwdp import DwdpConfig, Timeline, enable

EXPERTS = 16
FORWARDS = 4


def build(device: torch.device) -> Qwen3MoeForCausalLM:
    """Return the same model on every rank. Its experts are stacked, as transformers 5 has them."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=256,
        num_experts=EXPERTS,
        num_experts_per_tok=4,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
    )
    return Qwen3MoeForCausalLM(config).to(device).eval()


def main() -> None:
    """Run the model with all experts in each rank, then with each rank's share, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the ranks compute on")
    parser.add_argument("--chart", type=Path, help="where rank 0 draws its timeline, an SVG")
    parser.add_argument("--trace", type=Path, help="where rank 0 writes it for viewers of Chrome traces, JSON")
    options = parser.parse_args()

    if options.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = build(torch.device(options.device))
    torch.manual_seed(rank)  # ranks work on different prompts, each at its own pace
    tokens = torch.randint(model.config.vocab_size, (4, 64), device=options.device)

    timeline = Timeline(forwards=2)
    config = DwdpConfig.spreading(EXPERTS, size)
    with torch.inference_mode():
        expected = model(tokens).logits
        with enable(model, config, observer=timeline) as manager:
            found = [model(tokens).logits for _ in range(FORWARDS)]
            held = f"{manager.start_expert_id} to {manager.end_expert_id - 1}"
    equal = all(torch.equal(each, expected) for each in found)
    print(
        f"rank {rank}: stores experts {held} of {EXPERTS}; outputs are {'equal' if equal else 'NOT EQUAL'}", flush=True
    )

    if rank == 0:
        summary = timeline.summary()
        print(
            f"rank 0: {summary.overlap:.0%} of {summary.fetch * 1e3:.1f} ms of fetching a forward is hidden", flush=True
        )
        if options.chart:
            timeline.draw(options.chart)
        if options.trace:
            timeline.trace(options.trace)
    dist.destroy_process_group()
    if not equal:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
