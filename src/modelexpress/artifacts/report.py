"""What fetching one cache did."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from modelexpress.weights.report import Stage


class Outcome(StrEnum):
    """How a cache came to be complete."""

    INSTALLED = "installed"
    """This process fetched what was missing."""
    COMPLETE = "complete"
    """Nothing was missing."""
    BY_OTHER = "by another process"
    """Another process of this host has installed it."""


@dataclass(frozen=True)
class ArtifactReport:
    """What fetching one cache did. `print(report)` is for people, `report.json()` for programs.

    Args:
        kind: Of the cache.
        root: Where it is.
        outcome: How it came to be complete.
        artifact_id: What the source offered.
        source: Worker id of the source, or "".
        transport: What the bytes travelled over, or "".
        verdict: Who vouches for it, in a sentence.
        files: Files of the artifact.
        written: Those that are new in the cache.
        kept: Those that were there with another content, and stay as they are.
        nbytes: Bytes that travelled.
        total_bytes: Bytes of the whole artifact.
        seconds: The whole of it.
        stages: Its steps, in order.
        notes: What was tried before and why it was given up.
        paths: The files that are new, whoever of this host's processes has installed them, relative to the root.
    """

    kind: str
    root: Path
    outcome: Outcome
    artifact_id: str = ""
    source: str = ""
    transport: str = ""
    verdict: str = ""
    files: int = 0
    written: int = 0
    kept: int = 0
    nbytes: int = 0
    total_bytes: int = 0
    seconds: float = 0.0
    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def json(self) -> str:
        """Return the report as a JSON object; `paths` is left out."""
        fields: dict[str, Any] = asdict(self) | {"root": str(self.root)}
        del fields["paths"]
        return json.dumps(fields)

    def __str__(self) -> str:
        if self.outcome is Outcome.BY_OTHER:
            return f"{self.kind}: installed by another process of this host in {self.root}"
        over = f" over {self.transport}" if self.nbytes else ""
        lines = [
            f"{self.kind}: {self.written} of {self.files} files ({self.nbytes / 1e6:.1f} of "
            f"{self.total_bytes / 1e6:.1f} MB) fetched{over} from {self.source} in {self.seconds:.3f} s, {self.verdict}"
        ]
        lines += [f"  {stage.name:<18} {stage.seconds:8.3f} s" for stage in self.stages]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
