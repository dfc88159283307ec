"""`mx sources`: who holds what, is alive, and feeds whom."""

import asyncio
import dataclasses
import json
import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelexpress.cli.feeding import Fed, feeding
from modelexpress.cli.options import JsonOption, RegistryOption
from modelexpress.cli.printable import printable
from modelexpress.cli.sizes import shown_bytes
from modelexpress.client import AsyncClient
from modelexpress.identity import SourceIdentity
from modelexpress.wire.records import SourceRef, SourceStatus, WorkerRecord

_AT_ONCE = 16
_FILE_WIDTH = 300
_DEEPEST = 30
_COLOURS = {SourceStatus.READY: "green", SourceStatus.INITIALIZING: "yellow", SourceStatus.STALE: "red"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One worker as people see it; `age` in seconds since its last heartbeat."""

    model: str
    revision: str
    dtype: str
    rank: int
    status: str
    age: float
    endpoint: str
    accelerator: str
    source_id: str
    worker_id: str
    training_step: int | None
    source_load: float | None
    readers: list[Fed] = dataclasses.field(default_factory=list)


def sources(
    registry: RegistryOption = None,
    model: Annotated[str | None, typer.Option(help="Only sources of this model.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that are starting, stale or withdrawn.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the ones heard last first.")] = 1000,
    readers: Annotated[bool, typer.Option(help="Ask each worker who reads from it, and how far they are.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Show who holds which weights and caches, when they were last heard, and who reads from whom."""
    found = asyncio.run(_fetch(registry, model, None if everything else SourceStatus.READY, limit))
    if readers:
        for source, fed in zip(found, feeding((s.endpoint, s.source_id) for s in found), strict=True):
            source.readers.extend(fed)
    found.sort(key=lambda source: (source.model, source.source_id, source.rank, source.worker_id))
    # Where there is no terminal to fit into, a row is a line, for grep.
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    if as_json:
        # Not through rich, which would wrap the lines.
        typer.echo(json.dumps({"sources": [dataclasses.asdict(source) for source in found]}, indent=1))
    elif found:
        console.print(_table(found))
    else:
        console.print("no sources" if everything else "no ready sources; --all shows the others too")


async def _fetch(registry: str | None, model: str | None, status: SourceStatus | None, limit: int) -> list[Source]:
    """Return the workers that the registry lists; endpoints and statuses are only in their records."""
    gate = asyncio.Semaphore(_AT_ONCE)
    async with AsyncClient(registry) as client:
        refs = await client.list_sources(model_name=model, status=status, limit=limit)

        async def get(ref: SourceRef) -> tuple[WorkerRecord, SourceIdentity] | None:
            async with gate:
                return await client.get(ref.source_id, ref.worker_id)

        records = await asyncio.gather(*(get(ref) for ref in refs))
    # A record may be deleted between the two questions.
    return [_source(ref, *record) for ref, record in zip(refs, records, strict=True) if record is not None]


def _source(ref: SourceRef, record: WorkerRecord, identity: SourceIdentity) -> Source:
    return Source(
        model=printable(identity.model_name or identity.mx_source_type.name.lower()),
        revision=printable(identity.revision),
        dtype=printable(identity.dtype),
        rank=record.worker_rank,
        status=record.status.name,
        age=round(max(time.time() - record.updated_at / 1000, 0.0), 1),
        endpoint=printable(record.worker_grpc_endpoint or record.metadata_endpoint),
        accelerator=printable(record.accelerator),
        source_id=ref.source_id,
        worker_id=printable(ref.worker_id),
        training_step=ref.training_step,
        source_load=ref.source_load,
    )


def _table(found: list[Source]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("model", "rank", "status", "heard", "endpoint", "accelerator", "source id"):
        number = name in ("rank", "heard")
        table.add_column(name, justify="right" if number else "left", no_wrap=name != "model", overflow="fold")
    for source in found:
        table.add_row(
            Text(source.model),
            str(source.rank),
            Text(source.status.lower(), style=_COLOURS.get(SourceStatus[source.status], "")),
            _ago(source.age),
            Text(source.endpoint or "-"),
            Text(source.accelerator or "-"),
            source.source_id,
        )
        _add_readers(table, source.readers, 1)
    return table


def _add_readers(table: Table, readers: list[Fed], depth: int) -> None:
    """Add a row for each reader below what it reads from."""
    # Not by recursion: a chain may be longer than Python's stack is deep.
    waiting = [(reader, depth) for reader in reversed(readers)]
    while waiting:
        reader, depth = waiting.pop()
        done = reader.verified_bytes / reader.total_bytes if reader.total_bytes else 0.0
        rate = f"{printable(reader.worker_id)}  {done:.0%} of {shown_bytes(reader.total_bytes)}"
        name = Text(f"{' ' * min(depth, _DEEPEST)}└ {rate}")
        table.add_row(name, "", Text("reading", style="cyan"), f"{reader.seconds:.0f} s", reader.endpoint or "-")
        waiting += [(below, depth + 1) for below in reversed(reader.readers)]


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
