"""The documentation: what is generated is current, and files, links and targets that it names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelexpress.cli.app import app
from modelexpress.settings import variables

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGE = ROOT / "src" / "modelexpress"


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def test_what_is_generated_is_current() -> None:
    command = [sys.executable, "-m", "scripts.write_docs", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`([\w./-]+\.(?:py|sh|c|proto|toml))`", page.read_text()):
        bare = "/" not in name and any(PACKAGE.rglob(name))
        assert bare or (ROOT / name).exists() or (PACKAGE / name).exists(), name


def test_make_targets_that_are_named_exist(page: Path) -> None:
    for target in re.findall(r"(?:`|\$ )make (\w+)", page.read_text()):
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_every_setting_is_in_the_reference() -> None:
    reference = (ROOT / "docs" / "reference-settings.md").read_text()
    for variable, _, _ in variables():
        assert f"`{variable}`" in reference, variable


def test_every_command_is_described() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__
        assert f"## mx {name}" in page, name
        assert f"`mx {name}" in readme, name


def test_every_page_is_reachable_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "index.md" or f"({path.name})" in index, path.name
