"""A rank of a group that counts what sharing really takes.

    python -m tests.support.dwdp_plan_rank RANK SIZE FILE GRANULARITY

It waits for a configuration of transformers, a JSON object a line, builds that model with random weights, shares its
experts, runs a forward, and prints what was made, reserved and copied, in bytes.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from modelexpress.dwdp import DwdpConfig, enable
from modelexpress.dwdp.host_machine import HostMachine, HostStream
from modelexpress.dwdp.prefetch import Observer
from modelexpress.dwdp.streams import Copy, Stream
from modelexpress.memory.host_vmm import HostVmm
from modelexpress.memory.vmm import Physical
from tests.support.children import say


class CountingVmm(HostVmm):
    """Host memory that adds up what is made and reserved."""

    def __init__(self, granularity: int) -> None:
        super().__init__(granularity)
        self.made = self.reserved = 0

    def create(self, nbytes: int) -> Physical:
        self.made += nbytes
        return super().create(nbytes)

    def reserve(self, nbytes: int) -> int:
        self.reserved += nbytes
        return super().reserve(nbytes)


class CountingStream(HostStream):
    """A stream that adds up what it copies for each layer."""

    def __init__(self, copied: Counter[int]) -> None:
        super().__init__()
        self.position = -1
        self._copied = copied

    def copy_all(self, copies: Sequence[Copy]) -> None:
        self._copied[self.position] += sum(nbytes for _, _, nbytes in copies)
        super().copy_all(copies)


class CountingMachine(HostMachine, Observer):
    """A machine with such memory and streams, which tells them what they copy for."""

    def __init__(self, granularity: int) -> None:
        self.memory = CountingVmm(granularity)
        super().__init__(self.memory)
        self.copied: Counter[int] = Counter()
        self.fetches: Counter[int] = Counter()

    def stream(self) -> Stream:
        return CountingStream(self.copied)

    def fetching(self, position: int, lane: Stream) -> None:
        assert isinstance(lane, CountingStream)
        lane.position = position

    def fetched(self, position: int, joint: Stream) -> None:
        self.fetches[position] += 1


def share(config: dict[str, Any], granularity: int) -> dict[str, Any]:
    """Share the experts of a model, and return what that took."""
    torch.manual_seed(0)
    kind = config.pop("model_type")
    described = AutoConfig.for_model(kind, **config)
    model = AutoModelForCausalLM.from_config(described).eval()
    machine = CountingMachine(granularity)
    experts = config.get("num_experts") or config["num_local_experts"]
    spread = DwdpConfig.spreading(experts, dist.get_world_size())
    with torch.inference_mode(), enable(model, spread, machine=machine, observer=machine) as manager:
        model(torch.arange(8)[None])
        layers = len(manager.layers)
    # At the end of the forward its first layers were fetched again, for the next one.
    copied = [machine.copied[position] // machine.fetches[position] for position in range(layers)]
    return {"made": machine.memory.made, "reserved": machine.memory.reserved, "copied": copied}


def main() -> None:
    """Answer each configuration with what sharing took."""
    rank, size, file, granularity = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    for line in sys.stdin:
        say(json.dumps(share(json.loads(line), granularity)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
