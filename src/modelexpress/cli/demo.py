"""`mx demo`: a registry, a replica that loads from disk, and two that load from peers."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from modelexpress.cli.child import child, private_registry
from modelexpress.cli.demo_replica import DISK, PEER
from modelexpress.cli.ending import clean_up_when_terminated
from modelexpress.cli.options import JsonOption
from modelexpress.errors import ModelExpressError


class DemoFailed(ModelExpressError):
    """The replicas do not agree."""


def demo(
    folder: Annotated[
        Path | None, typer.Option(help="Where the model is built, and kept.", show_default="a temporary folder")
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="A model of a few megabytes in place of one gigabyte.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start a registry and three replicas of one model: the first loads from disk, the others from peers."""
    console = Console(stderr=as_json)
    clean_up_when_terminated()
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mx-demo-")))
        accounts = _run(place / ("demo-tiny" if tiny else "demo"), tiny, console, stack)
    same = len({account["logits"] for account in accounts}) == 1
    if as_json:
        typer.echo(json.dumps({"replicas": accounts, "same_logits": same}))
    else:
        _show(accounts, console)
    if not same:
        raise DemoFailed("the replicas do not give the same logits: please report this with the output of `mx doctor`")


def _run(folder: Path, tiny: bool, console: Console, stack: ExitStack) -> list[dict[str, Any]]:
    from modelexpress.cli.demo_model import build_demo_model

    console.print(f"building the model in {folder} …")
    build_demo_model(folder, scale="tiny" if tiny else "demo")
    console.print("starting a registry …")
    registry = stack.enter_context(private_registry())
    accounts = []
    for number, origin in enumerate((DISK, PEER, PEER), start=1):
        console.print(f"starting replica {number}, which loads from {'disk' if origin == DISK else 'a peer'} …")
        replica = stack.enter_context(child("-m", "modelexpress.cli.demo_replica", folder, registry, origin))
        accounts.append(replica.answer())
    return accounts


def _show(accounts: Sequence[dict[str, Any]], console: Console) -> None:
    table = Table(title="three replicas of one model")
    for title in ("replica", "stage", "seconds", "GB/s", "of the limit"):
        table.add_column(title, justify="left" if title in ("replica", "stage") else "right")
    for number, account in enumerate(accounts, start=1):
        for index, (stage, seconds) in enumerate(account["stages"]):
            table.add_row(f"{number} ({account['origin']})" if index == 0 else "", stage, f"{seconds:.3f}", "", "")
            if stage == "load from a peer":
                _show_report(account["report"], table)
        table.add_section()
    console.print(table)
    for number, account in enumerate(accounts, start=1):
        console.print(f"replica {number}: logits {account['logits']}{_origin(account)}")


def _show_report(report: dict[str, Any], table: Table) -> None:
    for stage in report["stages"]:
        rate = f"{stage['nbytes'] / stage['seconds'] / 1e9:.2f}" if stage["nbytes"] else ""
        fraction = f"{report['limit_fraction']:.0%}" if stage["nbytes"] and report["limit_fraction"] else ""
        table.add_row("", f"  {stage['name']}", f"{stage['seconds']:.3f}", rate, fraction)


def _origin(account: dict[str, Any]) -> str:
    report = account.get("report")
    if report is None:
        return ", read from disk, where the page cache may have helped"
    limit = report["limit"]
    how = f"; limit {limit['bytes_per_second'] / 1e9:.2f} GB/s ({limit['how']})" if limit else ""
    return f", {report['nbytes'] / 1e9:.3f} GB from {report['source']} over {report['transport']}{how}"
