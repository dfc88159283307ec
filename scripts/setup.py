"""Makes `.venv`: a virtual environment with the package, in place and editable, and every tool of the project.

Run by `make setup`, with the Python that the environment shall have. It needs nothing but the standard library.
A second run finds the stamp of the first and does nothing. Runs at the same time wait for each other, and an
environment whose making was interrupted is made anew.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "modelexpress-setup"
UNFINISHED = VENV / "modelexpress-setup-unfinished"
INPUTS = ("pyproject.toml", "src/modelexpress/transfer/_nh.c", "src/modelexpress/memory/_arena.c")
TORCH = "torch==2.13.0"  # not a requirement of the package, because engines bring their own


def main() -> None:
    """Set up, unless that was done."""
    os.chdir(ROOT)
    if is_done():
        return  # without the lock, which `make engines` may hold for minutes
    with alone():
        if is_done():
            return
        started = time.monotonic()
        make_environment()
        say(f"installing {TORCH} (large, the first time)")
        pip("install", TORCH)
        say("installing modelexpress with its tools")
        pip("install", "--editable", ".[dev]")
        STAMP.write_text(fingerprint())
        UNFINISHED.unlink()
        say(f"done in {time.monotonic() - started:.0f} s; the command is .venv/bin/mx")
        if not any((ROOT / "src/modelexpress/transfer").glob("_nh.*.so")):
            say("the C extension was not built, so digests are slow: install a C compiler, then `make clean setup`")


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other setup runs in this folder; the lock ends with this process and its children at the latest."""
    folder = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another setup in this folder")
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def is_done() -> bool:
    """Return whether the environment is complete and fits what is in the repository."""
    if UNFINISHED.exists() or not (VENV / "bin" / "mx").exists():
        return False
    return STAMP.exists() and STAMP.read_text() == fingerprint()


def fingerprint() -> str:
    """Return what decides how an environment looks: its place, then a hash of what is installed."""
    digest = hashlib.sha256(TORCH.encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return f"{VENV}\n{digest.hexdigest()}\n"


def make_environment() -> None:
    """Make the environment, or go on with the one that is there if its making was not interrupted."""
    moved = STAMP.exists() and STAMP.read_text().splitlines()[:1] != [str(VENV)]
    if moved or UNFINISHED.exists() or not runs(VENV / "bin" / "python"):
        STAMP.unlink(missing_ok=True)  # first of all: what is half removed must not look complete
        shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir(exist_ok=True)
    UNFINISHED.touch()
    if not (VENV / "bin" / "python").exists():
        say(f"making .venv with Python {sys.version.split()[0]}")
        run([sys.executable, "-m", "venv", str(VENV)], "install Python's venv module (Debian: python3-venv)")


def runs(python: Path) -> bool:
    """Return whether there is such a Python, of a version that the package supports, and with pip."""
    supported = "import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))"
    if not python.exists():
        return False
    return subprocess.run([python, "-c", supported], stderr=subprocess.DEVNULL).returncode == 0


def pip(*arguments: str) -> None:
    """Run the environment's pip; it speaks only when something fails."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "-qq", "--disable-pip-version-check", "--no-input"]
    run([*command, *arguments], "check the network, the free disk space and pip's configuration")


def run(command: list[str], remedy: str) -> None:
    """Run a command; where it fails, say so and end."""
    # A pip that outlives this process keeps the lock, with the descriptors that it inherits.
    status = subprocess.run(command, close_fds=False).returncode
    if status != 0:
        sys.exit(f"setup: {' '.join(command)} failed with status {status}: {remedy}, then run `make setup` again")


def say(text: str) -> None:
    """Tell whoever waits."""
    print(f"setup: {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("setup: interrupted: run `make setup` again, it starts anew")
