"""The benchmark of chains runs in host memory, small, and says what became of a target whose source died."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_link_that_dies_is_part_of_the_benchmark(tmp_path: Path) -> None:
    out = tmp_path / "gpu_chain.json"
    command = [sys.executable, "-m", "benchmarks.gpu_chain", "--place", "host", "--set", "tiny", "--rounds", "1"]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = {figure["name"]: figure["value"] for figure in json.loads(out.read_text())["figures"]}
    behind = "host memory: a link dies at half: the one behind it"
    had, kept, again = (
        values[f"{behind} {what}"]
        for what in ("had verified at that instant", "had and kept", "fetched again of what it had verified")
    )
    assert again <= had <= 100
    assert had <= kept + again
