"""The same tensors brought to another GPU in every way at hand, ours among them, in one run, beside the peer copy.

Run it with `python -m benchmarks.gpu_side_by_side --set dense`. It needs two GPUs of one host, and sees four if they
are there; each process sees one. `--host --tiny` tries the logic in host memory: its figures mean nothing.

Compared are torch.distributed's broadcast over NCCL, safetensors files in memory, and the client `modelexpress` 0.7.0
of the package index with its own transfer class over NIXL, where `--other-site` names a folder in which it is
installed (pip install --target). Of the others the best of five repetitions counts, of ours the median. A way that
fails or is not among `--parts` is left out, and the file says why.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.beside import parts
from benchmarks.beside.children import PartFailed
from benchmarks.beside.parts import Beside, Scope, Timing
from benchmarks.beside.tensors import chosen_shapes, total_bytes
from benchmarks.shapes import SETS
from modelexpress.cli.child import ChildFailed
from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine

RESULTS = Path(__file__).parent / "results"
OURS = "ours"
KEYS = (OURS, "broadcast", "files", "index")


@dataclasses.dataclass(frozen=True)
class Part:
    """A way that is measured: how it is chosen, what it is, and what measures it."""

    key: str
    title: str
    measure: Callable[[], Iterator[Timing]]


class Report:
    """Figures as they come in, and what had to be left out.

    Args:
        scope: What is measured.
        rate: The limit in bytes a second.
        say: Told what happens.
    """

    def __init__(self, scope: Scope, rate: float, say: Callable[[str], None]) -> None:
        self._limit = "memory copy" if scope.host else "peer copy"
        self._set, self._rate, self._say = scope.chosen, rate, say
        self._own: dict[Beside, float] = {}
        self.figures = [Figure(self._limit, rate / 1e9, "GB/s")]
        self.left_out: list[dict[str, str]] = []

    def run(self, part: Part) -> None:
        """Add what a part measures, or why it does not."""
        self._say(part.title)
        try:
            for timing in part.measure():
                self._add(timing, is_own=part.key == OURS)
        except (PartFailed, ChildFailed, OSError) as error:
            self._say(f"left out, {part.title}: {error}")
            # The last line of a traceback: the others name files of this machine.
            self.left_out.append({"part": part.title, "reason": str(error).splitlines()[-1]})

    def skip(self, part: Part) -> None:
        """Note a part that was not asked for."""
        self.left_out.append({"part": part.title, "reason": "not among --parts"})

    def _add(self, timing: Timing, *, is_own: bool) -> None:
        name, took = f"{self._set}: {timing.name}", 1e3 * timing.seconds
        if not timing.nbytes:
            self.figures.append(Figure(name, took, "ms", note=timing.note))
            return
        rate = f"{timing.nbytes / timing.seconds / 1e9:.3g} GB/s"
        note = f"{rate}, {timing.note}" if timing.note else rate
        self.figures.append(Figure(name, took, "ms", self._limit, 1e3 * timing.nbytes / self._rate, note=note))
        if is_own:
            self._own[timing.beside] = timing.seconds
        elif timing.beside is not Beside.NOTHING and timing.beside in self._own:
            ahead = timing.seconds / self._own[timing.beside]
            self.figures.append(Figure(f"{name}: ours ahead by", ahead, "×", note=f"ours: {timing.beside.value}"))


def all_parts(scope: Scope) -> Iterator[Part]:
    """Yield what can be run here, ours first: the others are compared with it."""
    yield Part(OURS, "this package", partial(parts.own, scope))
    for targets in (1, 3):
        if scope.host or scope.devices > targets:
            yield Part("broadcast", f"torch.distributed to {targets}", partial(parts.broadcasts, scope, targets))
    yield Part("files", "safetensors", partial(parts.checkpoint, scope))
    yield Part("index", "modelexpress 0.7.0", partial(parts.their_client, scope, False))
    if not scope.host:  # allocations of the host are found by nobody
        yield Part("index", "modelexpress 0.7.0, pooled", partial(parts.their_client, scope, True))


def options() -> argparse.ArgumentParser:
    """Return a parser of the command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="chosen", choices=list(SETS), default="dense")
    parser.add_argument("--host", action="store_true", help="in host memory, without a GPU")
    parser.add_argument("--tiny", action="store_true", help="small tensors")
    parser.add_argument("--parts", nargs="+", choices=KEYS, default=list(KEYS), help="all by default")
    parser.add_argument("--folder", type=Path, help="where the checkpoint goes for a while")
    parser.add_argument("--other-site", type=Path, help="folder with modelexpress 0.7.0 and what it needs")
    parser.add_argument("--out", type=Path, help="JSON; by default in benchmarks/results/, and with --host nowhere")
    return parser


def main() -> None:
    """Measure, print a table, write JSON."""
    parser, console = options(), Console(width=150)
    given = parser.parse_args()
    devices = 0 if given.host else torch.cuda.device_count()
    if not given.host and devices < 2:
        parser.error(f"{devices} CUDA devices are visible, two are needed; --host --tiny does without")
    nbytes = total_bytes(chosen_shapes(given))
    other = given.other_site.absolute() if given.other_site else None
    scope = Scope(given.chosen, nbytes, given.host, given.tiny, devices, given.folder, other)
    rate, device = parts.peer_copy(scope)
    report = Report(scope, rate, console.print)
    for part in all_parts(scope):
        (report.run if part.key in given.parts else report.skip)(part)
    machine = {"device": device or "none", "devices": devices, **dataclasses.asdict(Machine.this())}
    fields = [figure.fields() for figure in report.figures]
    found = json.dumps({"machine": machine, "figures": fields, "left_out": report.left_out}, indent=1)
    console.print(figure_table(f"{nbytes / 1e9:.2f} GB on {machine['device']}, {Machine.this()}", report.figures))
    for figure in report.figures:
        if figure.note:
            console.print(f"{figure.name}: {figure.note}")
    if out := given.out or (None if given.host else RESULTS / f"gpu_side_by_side_{given.chosen}.json"):
        out.write_text(found + "\n")


if __name__ == "__main__":
    main()
