"""What starts the processes of every way, and makes timings of what they say."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.beside.children import PartFailed, Process
from modelexpress.cli.child import private_registry

SPARE_BYTES = 2 << 30
"""What a folder must have beside the checkpoint."""


class Beside(Enum):
    """What of ours a timing is compared with."""

    LOAD = "whole load"
    FIRST = "first load of a process"
    NOTHING = ""


@dataclass(frozen=True)
class Timing:
    """What one way took.

    Args:
        name: The way.
        seconds: That count.
        nbytes: Moved; 0: preparation.
        beside: What of ours does the same.
        note: What else a reader should know.
    """

    name: str
    seconds: float
    nbytes: int = 0
    beside: Beside = Beside.NOTHING
    note: str = ""


@dataclass(frozen=True)
class Scope:
    """What is measured, and on what.

    Args:
        chosen: Name of the set of shapes.
        nbytes: Of all its tensors.
        host: Whether everything happens in host memory.
        tiny: Whether the shapes are made small.
        devices: How many GPUs there are.
        folder: Where the checkpoint goes; None: shared memory if it has room, else the folder for temporary files.
        other_site: Where the client of the package index is installed; None: nowhere.
    """

    chosen: str
    nbytes: int
    host: bool
    tiny: bool
    devices: int
    folder: Path | None
    other_site: Path | None

    def process(self, module: str, device: int | str, *options: object, site: Path | None = None) -> Process:
        """Start a module of this folder that sees one device, or those that are named."""
        place = ["--set", self.chosen, "--device", "cpu" if self.host else "cuda", *(["--tiny"] if self.tiny else [])]
        name = f"benchmarks.beside.{module}"
        return Process(name, *place, *options, visible="" if self.host else str(device), site=site)


def peer_copy(scope: Scope) -> tuple[float, str]:
    """Return the bytes a second of the limit, and the name of the device."""
    with scope.process("peer_copy", "0,1") as process:
        answer = process.answer()
    return answer["rate"], "".join(answer["names"])


def own(scope: Scope) -> Iterator[Timing]:
    """Yield what our publication and loads took."""
    with private_registry() as registry, ExitStack() as stack:
        source = stack.enter_context(scope.process("own", 0, "--registry", registry, "--source"))
        published = source.answer()
        if not published["ready"]:
            raise PartFailed("the registry did not take our publication")
        found = stack.enter_context(scope.process("own", 1, "--registry", registry)).answer()
    _check(found, "our load")
    first, *others = found["seconds"]
    note = f"over {found['transport']}, digests on"
    yield Timing("ours, publishing", published["publish"])
    yield Timing("ours, whole load, median of 5", median(others), scope.nbytes, Beside.LOAD, note)
    yield Timing("ours, copy and verification, median of 5", median(found["copies"][1:]), scope.nbytes)
    yield Timing("ours, first load of a process", first, scope.nbytes, Beside.FIRST, note)


def broadcasts(scope: Scope, targets: int) -> Iterator[Timing]:
    """Yield what broadcasts to so many took, until the last one had everything."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        world = ("--world", targets + 1, "--meet", Path(place) / "meet")
        ranks = [
            stack.enter_context(scope.process("broadcast", rank, "--rank", rank, *world)) for rank in range(targets + 1)
        ]
        answers = [process.answer() for process in ranks]
    for answer in answers:
        _check(answer, "the broadcast")
    last = {name: [max(each) for each in zip(*(a[name] for a in answers), strict=True)] for name in _BROADCASTS}
    title = f"{'gloo' if scope.host else 'NCCL'} broadcast to {targets}"
    start = max(answer["start"] for answer in answers)
    yield Timing(f"{title}: communicator", start)
    for name, what in _BROADCASTS.items():
        nbytes = answers[0]["block_bytes"] if name == "block" else scope.nbytes
        beside = Beside.LOAD if targets == 1 and name != "block" else Beside.NOTHING
        yield Timing(f"{title}: {what}", min(last[name][1:]), nbytes, beside)
    if targets == 1:
        name, seconds = f"{title}: communicator and first time, tensor by tensor", start + last["each"][0]
        yield Timing(name, seconds, scope.nbytes, Beside.FIRST)


_BROADCASTS = {"block": "one block", "each": "tensor by tensor", "flat": "one flat buffer"}


def checkpoint(scope: Scope) -> Iterator[Timing]:
    """Yield what reading the tensors from files in memory took."""
    with _room(scope) as folder:
        with scope.process("checkpoint", 0, "--folder", folder) as writer:
            writer.answer()
        for way in ("load_file", "safe_open"):
            with scope.process("checkpoint", 1, "--folder", folder, "--way", way) as reader:
                answer = reader.answer()
            _check(answer, f"safetensors, {way}")
            first, *others = answer["seconds"]
            title = f"safetensors {way} from {folder.parent}"
            yield Timing(f"{title}, warm", min(others), scope.nbytes, Beside.LOAD, "best of 5")
            yield Timing(f"{title}, warm, first of a process", first, scope.nbytes, Beside.FIRST)


@contextmanager
def _room(scope: Scope) -> Iterator[Path]:
    """Yield a new folder where the checkpoint fits, and remove it afterwards."""
    places = [scope.folder] if scope.folder else [Path("/dev/shm"), Path(tempfile.gettempdir())]
    need = scope.nbytes + SPARE_BYTES
    fitting = next((place for place in places if place.is_dir() and shutil.disk_usage(place).free >= need), None)
    if fitting is None:
        raise PartFailed(f"none of {', '.join(map(str, places))} has {need / 1e9:.1f} GB left: give --folder")
    with tempfile.TemporaryDirectory(dir=fitting, prefix="mx-benchmark-") as folder:
        yield Path(folder)


def their_client(scope: Scope, pooled: bool) -> Iterator[Timing]:
    """Yield what the client of the package index took, with registration by tensor, or by allocation."""
    if scope.other_site is None:
        raise PartFailed("--other-site was not given")
    options = ("--pooled",) if pooled else ()
    with ExitStack() as stack:
        source = stack.enter_context(scope.process("their_client", 0, "--source", *options, site=scope.other_site))
        described = source.answer()
        target = stack.enter_context(scope.process("their_client", 1, *options, site=scope.other_site))
        target.tell(tensors=described.pop("tensors"), metadata=described.pop("metadata"))
        found = target.answer()
    _check(found, "their client")
    yield from _their_timings(scope, described, found, "pooled registration" if pooled else "registered one by one")


def _their_timings(scope: Scope, source: dict[str, Any], target: dict[str, Any], how: str) -> Iterator[Timing]:
    title = f"modelexpress 0.7.0, {how}"
    first, *others = target["seconds"]
    yield Timing(f"{title}: agent", max(source["agent"], target["agent"]))
    metadata = f"{source['metadata_bytes'] / 1e6:.3g} MB of metadata"
    yield Timing(f"{title}: registration, source, {metadata}", source["registration"])
    yield Timing(f"{title}: registration, target", target["registration"])
    yield Timing(f"{title}: first receive", first, scope.nbytes)
    yield Timing(f"{title}: receive, best of 5", min(others), scope.nbytes, Beside.LOAD, "no registration in it")
    everything = target["agent"] + target["registration"] + first
    yield Timing(f"{title}: agent, registration and first receive", everything, scope.nbytes, Beside.FIRST)


def _check(answer: dict[str, Any], what: str) -> None:
    if not answer["right"]:
        raise PartFailed(f"{what} brought other bytes than were sent")
