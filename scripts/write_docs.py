"""Writes what can be generated into the documentation: settings, options of the commands, measured figures.

A page marks each place with `<!-- generated: NAME -->` and `<!-- end -->`. Run by `make docs`; with --check nothing
is written, and the status is 1 when a page is not up to date. It is a module: `python -m scripts.write_docs`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelexpress.settings import variables
from scripts.figures import figure_tables

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PLACE = re.compile(r"(<!-- generated: (?P<name>[\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def settings_table() -> str:
    """Return a table of every environment variable."""
    rows = [(f"`{name}`", f"`{default}`" if default else "", text) for name, default, text in variables()]
    return markdown_table(("variable", "default", "meaning"), rows)


def options_table(command: str) -> str:
    """Return a table of what a command takes."""
    import typer.main

    from modelexpress.cli.app import app

    found: Any = typer.main.get_group(app)
    for word in command.split():
        found = found.commands[word]
    rows = [(_spelling(each), _default(each), getattr(each, "help", None) or "") for each in found.params]
    return markdown_table(("option", "default", "meaning"), rows)


def _spelling(parameter: Any) -> str:
    return f"`{parameter.opts[0] if parameter.param_type_name == 'option' else (parameter.name or '').upper()}`"


def _default(parameter: Any) -> str:
    said = getattr(parameter, "show_default", None)
    value = said if isinstance(said, str) else parameter.default
    if value in (None, False) or parameter.required:
        return ""
    return str(getattr(value, "value", value))


def markdown_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table; bars in cells are escaped."""
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def generate(name: str) -> str:
    """Return what belongs into the place of that name."""
    kind, _, argument = name.partition(" ")
    makers: dict[str, Callable[[], str]] = {
        "settings": settings_table,
        "options": lambda: options_table(argument),
        "figures": lambda: figure_tables(ROOT / "benchmarks" / "results", argument.split()),
    }
    return makers[kind]()


def filled(text: str) -> str:
    """Return a page with every place filled."""
    return PLACE.sub(lambda match: f"{match[1]}\n{generate(match['name'])}\n\n{match[3]}", text)


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is out of date")
    check = parser.parse_args().check
    stale = [page for page in PAGES if filled(page.read_text()) != page.read_text()]
    for page in stale:
        if not check:
            page.write_text(filled(page.read_text()))
        print(f"{page.relative_to(ROOT)} {'is out of date: run `make docs`' if check else 'was written'}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
