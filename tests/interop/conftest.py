"""The other make: `modelexpress` of PyPI, in a virtual environment of its own that is kept between runs."""

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

VERSION = "0.7.0"
ITS_OWN = ("google-crc32c==1.8.0",)
"""What it needs and this package does not."""
ENVIRONMENT = Path(__file__).parents[2] / ".venv-interop"
SCRIPT = Path(__file__).with_name("their_client.py")

Ask = Callable[..., Any]


@pytest.fixture(scope="session")
def their_python() -> Path:
    """Return the interpreter that has the other package, installing it where it is missing.

    Its dependencies are ours too and are taken from our environment: without that, importing its client would
    download a torch with all of CUDA.
    """
    python = ENVIRONMENT / "bin" / "python"
    names = "-".join((f"modelexpress-{VERSION}", *ITS_OWN))
    stamp = ENVIRONMENT / f"{names}-{sys.version_info.major}.{sys.version_info.minor}"
    if not stamp.exists():
        venv.create(ENVIRONMENT, clear=True, symlinks=True)
        command = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps"]
        subprocess.run([*command, f"modelexpress=={VERSION}", *ITS_OWN], check=True, timeout=300)
        major, minor = sys.version_info[:2]
        packages = ENVIRONMENT / "lib" / f"python{major}.{minor}" / "site-packages"
        # Behind its own packages on the path, so that `modelexpress` is theirs and the rest is shared.
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        stamp.touch()
    return python


@pytest.fixture(scope="session")
def ask(their_python: Path) -> Iterator[Ask]:
    """Return a function that makes one call of their client, by name, and returns its answer."""
    command = [str(their_python), "-I", str(SCRIPT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def call(name: str, **arguments: Any) -> Any:
            print(json.dumps({"name": name, "arguments": arguments}), file=questions, flush=True)
            return json.loads(answers.readline())

        yield call
        questions.close()
