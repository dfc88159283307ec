"""What `mx doctor` finds: one line each, and what to do about it."""

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """How bad a finding is."""

    WORKS = "works"
    LIMITED = "limited"
    """Something optional is missing, slow or set wrongly; loads still work."""
    BROKEN = "broken"
    """Without this the package cannot do its work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        area: What it belongs to: "python", "memory", "transport", …
        name: What was looked at.
        state: Whether it works.
        detail: What was found.
        remedy: What to do; empty where it works.
    """

    area: str
    name: str
    state: State
    detail: str
    remedy: str = ""


def works(area: str, name: str, detail: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(area, name, State.WORKS, detail)


def limited(area: str, name: str, detail: str, remedy: str) -> Finding:
    """Return a finding that something optional does not work."""
    return Finding(area, name, State.LIMITED, detail, remedy)


def broken(area: str, name: str, detail: str, remedy: str) -> Finding:
    """Return a finding that the package cannot work."""
    return Finding(area, name, State.BROKEN, detail, remedy)
