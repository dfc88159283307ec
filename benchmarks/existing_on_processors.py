"""Lets the client of the package index, `modelexpress` 0.7.0, move weights of vLLM that are in host memory.

By itself it knows GPUs alone. A plugin of vLLM, in every process of a server whose PYTHONPATH leads to that client,
tells it that the host is an accelerator, and keeps vLLM from packing weights, which it would do before they are sent.
"""

import dataclasses
import time
from importlib import import_module
from pathlib import Path
from typing import Any

_SAID = "existing client: prepared and received in"
PREPARED = rf"{_SAID} ([\d.]+) s"
"""Finds in the log of a server how long a target took in all, in seconds."""
RECEIVED = r"\[TIMING\] Total receive time: ([\d.]+)s"
"""Finds the client's own figure, in seconds."""


@dataclasses.dataclass(frozen=True)
class HostAccelerator:
    """What the client asks of an accelerator."""

    name = "cpu"
    torch_device_type = "cpu"
    nixl_mem_type = "DRAM"

    def set_device(self, device_id: int) -> None:
        """Do nothing: there is one."""

    def current_device(self) -> int:
        """Return its number."""
        return 0

    def synchronize(self, device_id: int | None = None) -> None:
        """Do nothing: nothing runs behind the caller's back."""

    def empty_cache(self) -> None:
        """Do nothing: there is none."""

    def is_accel_tensor(self, tensor: Any) -> bool:
        """Return whether a tensor is in host memory, and has any."""
        return bool(tensor.device.type == "cpu" and tensor.numel())

    def supports_rdma_p2p(self) -> bool:
        """Return that transfers are possible."""
        return True

    def supports_pool_reg(self) -> bool:
        """Return that there are no allocations to look up."""
        return False

    supports_vmm = supports_gds = supports_pool_reg


def register() -> None:
    """Change the client in this process; vLLM calls it."""
    # By name: this `modelexpress` is the other one.
    accelerators: Any = import_module("modelexpress.accelerators")
    adapter: Any = import_module("modelexpress.engines.vllm.adapter")
    rdma_strategy: Any = import_module("modelexpress.load_strategy.rdma_strategy")
    operations: Any = import_module("vllm._custom_ops")

    operations._supports_onednn = False
    accelerators.accelerator_backend_for = adapter.accelerator_backend_for = lambda device: HostAccelerator()
    adapter._get_vllm_device_id = lambda device: 0
    whole = rdma_strategy.RdmaStrategy._load_as_target

    def timed(*given: Any) -> Any:
        began = time.perf_counter()
        loaded = whole(*given)
        print(f"{_SAID} {time.perf_counter() - began:.3f} s", flush=True)
        return loaded

    rdma_strategy.RdmaStrategy._load_as_target = timed


def install(folder: Path) -> Path:
    """Make a folder for PYTHONPATH that has this plugin, and return it."""
    name = Path(__file__).stem
    about = folder / f"{name}-1.dist-info"
    about.mkdir(parents=True)
    (folder / f"{name}.py").symlink_to(__file__)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{name} = {name}:register\n")
    return folder
