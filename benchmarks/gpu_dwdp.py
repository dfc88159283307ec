"""Experts shared between GPUs: against the link, all experts resident, and expert parallelism; one process a GPU.

Run it with `python -m benchmarks.gpu_dwdp` where there are two GPUs or more. Each part runs in processes of its own
within a time limit, and is written down when it is done: `--parts` chooses some, and what an earlier run on the same
machine left in the file is kept. `--device cpu` runs the same on the host, with tiny shapes.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu_dwdp_figures import figures, lines
from modelexpress.cli.figure import figure_table
from modelexpress.cli.machine import Machine
from modelexpress.dwdp.layout import PAGE_UNITS

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("limit", "prefetch", "ideal", "experts", "scaling", "slices", "theirs")
"""In order of importance, should time run out."""
_TOKENS = {"cuda": "2048,4096,8192,12288,16384,32768,65536", "cpu": "32,64,128"}
_FEWER = {"cuda": "8192,16384,32768", "cpu": "64,128"}
_MORE_POINTS = ("ideal",)


def run(part: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one part in processes of its own, and return what rank 0 wrote, or why it wrote nothing."""
    tokens = given.tokens or (_TOKENS if part in _MORE_POINTS else _FEWER)[given.device]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        options = {
            "part": part,
            "ranks": given.ranks,
            "layers": given.layers,
            "rounds": given.rounds,
            "deadline": given.deadline,
            "page-units": given.page_units,
            "tokens": tokens,
            "device": given.device,
            "store": f"{folder}/store",
            "theirs": given.theirs,
            "out": out,
        }
        command = [sys.executable, "-m", "benchmarks.gpu_dwdp_rank"]
        command += [f"--{name}={value}" for name, value in options.items()]
        environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ}
        ranks = [subprocess.Popen([*command, f"--rank={rank}"], env=environment) for rank in range(given.ranks)]
        failed = _wait(ranks, given.deadline)
        if out.exists():
            found: dict[str, Any] = json.loads(out.read_text())
            return found
        return {"failed": failed or "nothing was written: see above"}


def _wait(ranks: list["subprocess.Popen[bytes]"], deadline: float) -> str:
    """Wait for all ranks; where one fails, or time runs out, end the others. Return what went wrong."""
    end, failed = time.monotonic() + deadline, ""
    while not failed and any(rank.poll() is None for rank in ranks):
        if broken := [number for number, rank in enumerate(ranks) if rank.poll()]:
            failed = f"rank {broken[0]} ended with status {ranks[broken[0]].returncode}"
        elif time.monotonic() > end:
            failed = f"it took more than {deadline:g} s"
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()
        rank.wait()
    return failed


def machine_of(given: argparse.Namespace) -> dict[str, object]:
    """Return what this ran on."""
    devices: dict[str, object] = {}
    if given.device == "cuda":
        devices = {"device": torch.cuda.get_device_name(0), "devices": given.ranks}
    return {**devices, **dataclasses.asdict(Machine.this())}


def write(out: Path, chart: Path | None, machine: dict[str, object], runs: dict[str, Any], layers: int) -> None:
    """Write down what is known so far."""
    found = [figure.fields() for figure in figures(runs)]
    out.write_text(json.dumps({"machine": machine, "layers": layers, "figures": found, "runs": runs}, indent=1) + "\n")
    if chart is not None and (drawn := lines(runs)):
        from benchmarks.gpu_dwdp_chart import draw

        where = f"{machine.get('devices', 1)} × {machine.get('device', 'host')}"
        draw(chart, f"a layer of Qwen3-30B-A3B, {where}", drawn)


def options() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_dwdp", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--ranks", type=int, help="by default as many as there are GPUs, at most four")
    parser.add_argument("--layers", type=int, help="by default 48")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", help="of a rank, for each point; by default 2,048 to 65,536")
    parser.add_argument("--deadline", type=int, default=120, help="seconds for a part")
    parser.add_argument("--page-units", type=int, default=PAGE_UNITS, help="units of granularity in a page of a slot")
    parser.add_argument("--theirs", default="", help="folder `srt` of an installed sglang, for the part `theirs`")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_dwdp.json")
    parser.add_argument("--chart", type=Path, help="an SVG")
    given = parser.parse_args()
    if unknown := set(given.parts.split(",")) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    given.layers = given.layers or (48 if given.device == "cuda" else 4)
    given.ranks = given.ranks or (min(4, torch.cuda.device_count()) if given.device == "cuda" else 2)
    if given.ranks < 2:
        parser.error("two GPUs are needed; --device cpu runs on the host")
    return given


def main() -> None:
    """Run the parts, write JSON after each, print a table."""
    given = options()
    machine, runs = machine_of(given), dict[str, Any]()
    if given.out.exists():
        earlier = json.loads(given.out.read_text())
        alike = ("device", "devices", "processor")
        if all(earlier["machine"].get(key) == machine.get(key) for key in alike) and earlier["layers"] == given.layers:
            runs = {name: {"another_run": "another run", **found} for name, found in earlier["runs"].items()}
    console = Console(width=160)
    for part in given.parts.split(","):
        begun = time.monotonic()
        runs[part] = run(part, given)
        write(given.out, given.chart, machine, runs, given.layers)
        console.print(f"{part}: {time.monotonic() - begun:.0f} s {runs[part].get('failed', '')}")
    console.print(figure_table(f"experts shared by {given.ranks} × {machine.get('device', 'host')}", figures(runs)))


if __name__ == "__main__":
    main()
