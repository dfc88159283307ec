"""One rank of the benchmark of shared experts: runs one part, and rank 0 writes down what came of it."""

import argparse
import faulthandler
import json
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.gpu_dwdp_clock import meet
from benchmarks.gpu_dwdp_model import REAL, TINY
from benchmarks.gpu_dwdp_parts import PARTS, Task
from modelexpress.dwdp import layout


def main() -> None:
    """Join the others, run the part, leave."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=list(PARTS), required=True)
    for name in ("rank", "ranks", "layers", "rounds", "deadline", "page-units"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--theirs", default="")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(max(1, given.deadline - 5))
    device = torch.device("cpu")
    if given.device == "cuda":
        device = torch.device("cuda", given.rank)
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if given.device == "cuda" else "gloo",
        init_method=f"file://{given.store}",
        rank=given.rank,
        world_size=given.ranks,
        timeout=timedelta(seconds=given.deadline),
    )
    layout.PAGE_UNITS = given.page_units
    shape = replace(REAL if given.device == "cuda" else TINY, layers=given.layers)
    task = Task(shape, device, [int(number) for number in given.tokens.split(",")], given.rounds, given.theirs)
    begun = time.perf_counter()
    with torch.inference_mode():
        found = PARTS[given.part](task)
    meet()
    if given.rank == 0:
        given.out.write_text(json.dumps({**found, "seconds": time.perf_counter() - begun}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
