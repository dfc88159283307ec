"""`mx doctor`: what works on this machine, and why not."""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelexpress.cli.checkup_links import check_links
from modelexpress.cli.checkup_machine import check_machine
from modelexpress.cli.checkup_network import check_registry, check_settings, check_worker_port
from modelexpress.cli.checkup_transports import Ways, check_transports
from modelexpress.cli.findings import Finding, State
from modelexpress.cli.machine import Machine
from modelexpress.cli.options import JsonOption, RegistryOption
from modelexpress.settings import Settings

_MARKS = {
    State.WORKS: Text("✓", "green"),
    State.LIMITED: Text("!", "yellow"),
    State.BROKEN: Text("✗", "bold red"),
}


def doctor(registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """Say what works on this machine and why not; status 1 when loads cannot work at all."""
    settings = _settings(registry)
    findings = tuple(examine(settings))
    if as_json:
        typer.echo(json.dumps(_fields(settings, findings)))
    else:
        _show(findings, Console())
    if any(finding.state is State.BROKEN for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield everything that is worth knowing about this machine and this environment."""
    yield from check_machine()
    ways = Ways.find(settings)
    yield from check_transports(ways)
    yield from check_links(ways)
    yield check_worker_port(settings)
    yield check_registry(settings)
    yield from check_settings()


def _settings(registry: str | None) -> Settings:
    # Malformed variables become findings: the warnings would say the same above the table.
    logging.getLogger("modelexpress.settings").setLevel(logging.ERROR)
    settings = Settings.read()
    return settings.model_copy(update={"registry": registry}) if registry else settings


def _fields(settings: Settings, findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "works": all(finding.state is not State.BROKEN for finding in findings),
        "machine": dataclasses.asdict(Machine.this()),
        "findings": [{**dataclasses.asdict(finding), "state": finding.state.value} for finding in findings],
        "settings": settings.model_dump(),
    }


def _show(findings: Sequence[Finding], console: Console) -> None:
    table = Table(title=f"modelexpress on {Machine.this()}", title_justify="left")
    for title in ("", "area", "what", "found"):
        table.add_column(title, overflow="fold")
    area = ""
    for finding in findings:
        if finding.area != area:
            table.add_section()
        found = Text(finding.detail)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", "bold")
        table.add_row(_MARKS[finding.state], finding.area if finding.area != area else "", finding.name, found)
        area = finding.area
    console.print(table)
    console.print(_verdict(findings))


def _verdict(findings: Sequence[Finding]) -> str:
    broken = sum(finding.state is State.BROKEN for finding in findings)
    limited = sum(finding.state is State.LIMITED for finding in findings)
    if broken:
        return f"{broken} things must be mended before anything can be loaded here"
    return f"loads work here; {limited} optional things do not" if limited else "everything works here"
