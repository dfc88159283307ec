"""The benchmark of TensorRT-LLM checkpoints runs, small, and yields every figure that the project has a target for."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--bytes", "4MiB", "--ranks", "2", "--rounds", "1"]


def test_every_target_has_its_figure(tmp_path: Path) -> None:
    out = tmp_path / "trtllm_checkpoint.json"
    command = [sys.executable, "-m", "benchmarks.trtllm_checkpoint", *SMALL, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    assert {name for name, figure in figures.items() if figure["met"] is not None} == {
        "no source and no wait: the refusal",
        "0.00 GB in 2 ranks, folder to folder",
    }
