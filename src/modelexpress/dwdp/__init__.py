"""Distributed weight data parallelism: the ranks of a group share expert weights while they run.

Each rank stores a part of every layer's experts, and fetches the others from its peers while it computes. Names are
imported when they are first used: what foresees a group needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelexpress.dwdp.config import DwdpConfig
    from modelexpress.dwdp.hooks import enable
    from modelexpress.dwdp.manager import DwdpManager
    from modelexpress.dwdp.timeline import Timeline

__all__ = ["DwdpConfig", "DwdpManager", "Timeline", "enable"]

_HOMES = {"DwdpConfig": "config", "DwdpManager": "manager", "Timeline": "timeline", "enable": "hooks"}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'modelexpress.dwdp' has no attribute {name!r}")
    value = getattr(import_module(f"modelexpress.dwdp.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
