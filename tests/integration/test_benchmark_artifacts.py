"""The benchmark of caches runs, small, and yields every figure that the project has a target for."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--bytes", "1MiB", "--files", "50", "--rounds", "1"]


def test_every_target_has_its_figure(tmp_path: Path) -> None:
    out = tmp_path / "artifacts.json"
    command = [sys.executable, "-m", "benchmarks.artifacts", *SMALL, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    assert {name for name, figure in figures.items() if figure["met"] is not None} == {
        f"{what}, {rest}" if rest else what
        for transport in ("local", "tcp")
        for what, rest in (
            (f"50 files over {transport}", "verified and installed"),
            ("a second transfer", f"nothing missing, {transport}"),
        )
    }
