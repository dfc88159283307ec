"""Distributed weight data parallelism: the ranks of a group share expert weights while they run.

Each rank stores a part of every layer's experts, and fetches the others from its peers while it computes.
"""

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.enable import enable
from modelexpress.dwdp.manager import DwdpManager

__all__ = ["DwdpConfig", "DwdpManager", "enable"]
