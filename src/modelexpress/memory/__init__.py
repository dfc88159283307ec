"""Where bytes live: regions that can be offered to other processes, and the arenas that make them."""

from typing import TYPE_CHECKING, Any

from modelexpress.memory.arena import ALIGNMENT, HostArena, aligned
from modelexpress.memory.region import Region, memory_view
from modelexpress.memory.vmm import Physical, Vmm

if TYPE_CHECKING:
    from modelexpress.memory.cuda_arena import CudaArena

__all__ = ["ALIGNMENT", "CudaArena", "HostArena", "Physical", "Region", "Vmm", "aligned", "memory_view"]


def __getattr__(name: str) -> Any:
    if name != "CudaArena":
        raise AttributeError(f"module 'modelexpress.memory' has no attribute {name!r}")
    # Only where a GPU is involved: it needs torch.
    from modelexpress.memory.cuda_arena import CudaArena

    return CudaArena
