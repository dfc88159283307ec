"""Where bytes live: regions that can be offered to other processes, and the arenas that make them."""

from modelexpress.memory.arena import ALIGNMENT, HostArena, aligned
from modelexpress.memory.region import Region, memory_view

__all__ = ["ALIGNMENT", "HostArena", "Region", "aligned", "memory_view"]
