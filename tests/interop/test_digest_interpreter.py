"""The digest kernel without a GPU: in Triton's interpreter, from a virtual environment of its own that is kept."""

import dataclasses
import json
import mmap
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from modelexpress.transfer.digest import digest_many
from tests.support.digest_inputs import column, random_bytes

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-triton"
# The interpreter of this Triton turns arrays of one element into numbers, which numpy 2.4 refuses.
PACKAGES = ("triton==3.6.0", "numpy==2.2.6")
SCRIPT = Path(__file__).with_name("interpreted_digests.py")
LINE = 1024
MEMORY = 147 * mmap.PAGESIZE
SHAPES = [(256, 16, 8, 4), (64, 32, 4, 4), (16, 8, 16, 4), (2, 2, 32, 1)]


@dataclasses.dataclass(frozen=True)
class Request:
    """What interpreted_digests.py reads."""

    shape: dict[str, int]
    memory: int
    ranges: list[tuple[int, int]]


@pytest.fixture(scope="session")
def triton_python() -> Path:
    """Return an interpreter that has Triton, and otherwise our packages."""
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / f"{'-'.join(PACKAGES)}-{sys.version_info.major}.{sys.version_info.minor}"
    if not stamp.exists():
        venv.create(ENVIRONMENT, clear=True, symlinks=True)
        command = [sys.executable, "-m", "pip", "--quiet", "--python", str(python), "install", "--no-deps"]
        subprocess.run([*command, *PACKAGES], check=True, timeout=500)
        major, minor = sys.version_info[:2]
        packages = ENVIRONMENT / "lib" / f"python{major}.{minor}" / "site-packages"
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        stamp.touch()
    return python


def interpreted(python: Path, requests: list[Request]) -> list[list[int]]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    questions = json.dumps([dataclasses.asdict(request) for request in requests])
    done = subprocess.run(
        [python, SCRIPT], input=questions, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    answers: list[list[int]] = json.loads(done.stdout)
    return answers


def expected(request: Request) -> list[int]:
    memory = random_bytes(request.memory)
    offsets, lengths = zip(*request.ranges, strict=True)
    digests: list[int] = digest_many(column(*offsets) + column(memory.ctypes.data), column(*lengths)).tolist()
    return digests


def some_ranges() -> list[tuple[int, int]]:
    """Lengths around words, lines and tiles: at every alignment, and at both ends of memory."""
    lengths = [0, 1, 7, 8, 9, 15, 1023, 1024, 1025, 4096]
    lengths += [16 * LINE, 16 * LINE + 5, 64 * LINE - 1, 64 * LINE, 257 * LINE]
    starts = [(16 + number % 17, length) for number, length in enumerate(lengths)]
    aligned = [(0, length) for length in lengths]
    at_the_end = [(MEMORY - length, length) for length in lengths]
    return starts + aligned + at_the_end


def test_the_kernel_equals_the_host(triton_python: Path) -> None:
    names = ("tile", "lines", "lanes", "warps")
    requests = [Request(dict(zip(names, shape, strict=True)), MEMORY, some_ranges()) for shape in SHAPES]
    answers = interpreted(triton_python, requests)
    for request, digests in zip(requests, answers, strict=True):
        assert digests == expected(request)
