"""What a load did, stage by stage, and how close to the limit of the link it came."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from modelexpress.transport import LinkLimit

Progress = Callable[[int, int], None]
"""Called with the bytes that are in place and the bytes in all."""


@dataclass(frozen=True)
class Stage:
    """One step of a load: its duration in seconds, and the bytes it moved."""

    name: str
    seconds: float
    nbytes: int = 0

    @property
    def bytes_per_second(self) -> float:
        """Rate; zero where nothing was moved."""
        return self.nbytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class LoadReport:
    """What a load did. `print(report)` is for people, `report.json()` for programs.

    Args:
        strategy: What delivered the weights: "peer", "storage" or "native".
        source: Worker id of the source, folder of the checkpoint, or "".
        transport: What the bytes travelled over: "local", "tcp", … or "".
        tensors: Number of tensors filled; tied ones count once.
        nbytes: Bytes now in place, those kept from an earlier source included. Where a peer delivered some rows of a
            tensor these are the chunks that hold them, whole.
        kept_bytes: Bytes that an earlier source had delivered before it was lost.
        seconds: The whole load.
        stages: Its steps, in order.
        limit: How fast the link could have been, where that is known.
        notes: What was tried before and why it was given up; what else a person should know.
    """

    strategy: str
    source: str
    transport: str
    tensors: int
    nbytes: int
    kept_bytes: int
    seconds: float
    stages: tuple[Stage, ...]
    limit: LinkLimit | None
    notes: tuple[str, ...]

    @property
    def limit_fraction(self) -> float | None:
        """Rate of the copy over the limit of the link; None where either is unknown."""
        copy = next((stage for stage in self.stages if stage.name == COPY), None)
        if self.limit is None or copy is None or not copy.nbytes:
            return None
        return copy.bytes_per_second / self.limit.bytes_per_second

    def json(self) -> str:
        """Return the report as a JSON object."""
        fields: dict[str, Any] = asdict(self)
        fields["limit_fraction"] = self.limit_fraction
        return json.dumps(fields)

    def __str__(self) -> str:
        rate = self.nbytes / self.seconds / 1e9 if self.seconds else 0.0
        by = f"{self.strategy} {self.source}".strip()
        over = f" over {self.transport}" if self.transport else ""
        lines = [
            f"{self.nbytes / 1e9:.3f} GB in {self.tensors} tensors from {by}{over} "
            f"in {self.seconds:.3f} s ({rate:.2f} GB/s)"
        ]
        lines += [_stage_line(stage) for stage in self.stages]
        if self.limit is not None and self.limit_fraction is not None:
            lines.append(
                f"  limit of the link {self.limit.bytes_per_second / 1e9:.2f} GB/s ({self.limit.how}): "
                f"the copy ran at {self.limit_fraction:.0%} of it"
            )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


COPY = "copy and verify"
"""Name of the stage in which the bytes travel."""


def _stage_line(stage: Stage) -> str:
    rate = f"  {stage.bytes_per_second / 1e9:6.2f} GB/s" if stage.nbytes else ""
    return f"  {stage.name:<18} {stage.seconds:8.3f} s{rate}"


@dataclass
class Journal:
    """Collects what happens during a load; strategies write, `report` reads. `measures` the limit of the link, too."""

    progress: Progress | None = None
    measures: bool = True
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    strategy: str = ""
    source: str = ""
    transport: str = ""
    tensors: int = 0
    nbytes: int = 0
    kept_bytes: int = 0
    limit: LinkLimit | None = None
    started: float = field(default_factory=time.perf_counter)
    aside_seconds: float = 0.0

    @contextmanager
    def stage(self, name: str, nbytes: int = 0) -> Iterator[None]:
        """Time a step; it counts also when it fails."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stages.append(Stage(name, time.perf_counter() - started, nbytes))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do something that is not part of the load: its time does not count."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.aside_seconds += time.perf_counter() - started

    def advance(self, done: int, total: int) -> None:
        """Tell whoever watches how far the load is."""
        if self.progress is not None:
            self.progress(done, total)

    def report(self) -> LoadReport:
        """Return the report of a load that has ended well."""
        return LoadReport(
            strategy=self.strategy,
            source=self.source,
            transport=self.transport,
            tensors=self.tensors,
            nbytes=self.nbytes,
            kept_bytes=self.kept_bytes,
            seconds=time.perf_counter() - self.started - self.aside_seconds,
            stages=tuple(self.stages),
            limit=self.limit,
            notes=tuple(self.notes),
        )
