"""A rank of a group on a GPU: does the cases that it is told line by line, and answers each as JSON."""

import argparse
import json
import sys
import traceback
import warnings

import torch
import torch.distributed as dist

from tests.support.children import say
from tests.support.dwdp_gpu_cases import CASES
from tests.support.dwdp_gpu_driver import install


def main() -> None:
    """Join the others, then work until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--store", required=True, help="a file that all ranks find each other by")
    parser.add_argument("--device", choices=["cuda", "cpu", "double", "strict"], default="cuda")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    device = torch.device("cpu")
    if given.device == "cuda":
        device = torch.device("cuda", given.rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    elif given.device != "cpu":
        install(strict=given.device == "strict")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{given.store}", rank=given.rank, world_size=given.ranks)
    say(json.dumps({"pid": given.rank}))
    for line in sys.stdin:
        order = json.loads(line)
        try:
            with torch.inference_mode():
                answer = CASES[order["case"]](device, order)
        except Exception:  # noqa: BLE001 -- the test that asked is told, and this rank goes on
            answer = {"failed": traceback.format_exc()}
        say(json.dumps(answer))
    if "lost" not in answer:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
