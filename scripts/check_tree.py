"""Fails when a file of the repository names what belongs to one machine: a package registry or a folder of a person.

Run by `make check`. Packages come from wherever pip is configured to take them from, and paths are relative.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Brackets keep the expressions from finding themselves.
FORBIDDEN = {
    "an option that names a package registry": r"--(extra-)?index[-]url",
    "the address of a package registry": r"https?://\S*/simple[/]?(\s|$)|\b(pypi|test\.pypi)[.]org\b|pythonhosted[.]org",
    "a folder of one machine": rf"/(home|Users)/\w+[/]|/root[/]|{re.escape(str(ROOT))}(/|\b)",
}


def main() -> None:
    """Print every place, and end with status 1 if there is one."""
    places = [place for path in tracked() for place in search(path)]
    sys.exit("\n".join(places) if places else 0)


def tracked() -> Iterator[Path]:
    """Yield the files that are, or could be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in sorted(set(listing.splitlines())):
        if (ROOT / name).is_file():
            yield Path(name)


def search(path: Path) -> Iterator[str]:
    """Yield one line for each place of a file that must not be there."""
    for number, line in enumerate((ROOT / path).read_text(errors="replace").splitlines(), start=1):
        for what, pattern in FORBIDDEN.items():
            if re.search(pattern, line):
                yield f"{path}:{number}: {what}: {line.strip()[:100]}"


if __name__ == "__main__":
    main()
