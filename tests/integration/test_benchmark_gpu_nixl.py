"""The benchmark of `nixl` between GPUs runs on host memory, small, and yields every figure that has a target."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelexpress.transport.nixl_library import missing

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def test_every_target_has_its_figure(tmp_path: Path) -> None:
    out = tmp_path / "gpu_nixl.json"
    command = [sys.executable, "-m", "benchmarks.gpu_nixl", "--tiny", "--host", "--rounds", "1", "--set", "dense"]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["figures"]
    with_target = {figure["name"] for figure in figures if figure["met"] is not None}
    assert with_target == {
        f"dense, {layout}: {what}"
        for layout in ("one allocation", "as torch allocates")
        for what in ("read", "registration at the source", "registration at the target")
    }
