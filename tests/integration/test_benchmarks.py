"""The benchmark of loads runs, small, and yields every figure that the project has a target for."""

import json
import subprocess
import sys
from pathlib import Path

from scripts.figures import figure_tables

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--bytes", "4MiB", "--many", "100", "--rounds", "1", "--idle-seconds", "0.1", "--folder", "tiny"]


def test_every_target_has_its_figure(tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    command = [sys.executable, "-m", "benchmarks.load", *SMALL, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    with_target = {name for name, figure in figures.items() if figure["met"] is not None}
    assert with_target == {
        "local, digests on",
        "tcp, digests on",
        "all but the copy, 300 tensors",
        "all but the copy, 100 tensors",
        "memory over the model's size, local",
        "memory over the model's size, tcp",
        "import modelexpress",
    }
    ways = [name for name in figures if "folder" in name]
    assert len(ways) == 7, "one from a peer; storage, safetensors and transformers, cold and warm"
    table = figure_tables(tmp_path, ["load"])
    assert all(name in table for name in figures)
