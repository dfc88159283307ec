"""Runs every scenario, prints the tables, and writes the figures and the chart."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.fan_out import bounds
from benchmarks.fan_out.chart import Points, draw
from benchmarks.fan_out.fleet import Setup
from benchmarks.fan_out.scenarios import BURST, FINE, LARGE, SCENARIOS, TREE, Outcome, Scenario, run
from modelexpress.cli.figure import Figure
from modelexpress.cli.machine import Machine

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fan_out.json"
CHART = ROOT / "docs" / "fan-out.svg"
MOST = 1024
SHOWN = (64, 1024)
COMPARED: Mapping[str, Callable[[Setup, int], float]] = {
    "star": bounds.star,
    "doubling": bounds.doubling,
    "ideal chain": bounds.chain,
    "optimum": bounds.optimum,
}

Results = Mapping[Scenario, Sequence[Outcome]]


def simulate(numbers: Sequence[int]) -> Results:
    """Return what comes of every scenario with each number of targets."""
    jobs = sorted(((s, n) for s in SCENARIOS for n in numbers), key=lambda job: -job[1] * job[0].setup.chunks)
    with ProcessPoolExecutor() as pool:
        done = dict(zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True))
    return {scenario: [done[scenario, n] for n in numbers] for scenario in SCENARIOS}


def compared(name: str, targets: int) -> float:
    """Return a formula's time for the usual setup, over the time of one target alone."""
    return COMPARED[name](BURST.setup, targets) / BURST.setup.alone


def figures(results: Results) -> Iterator[Figure]:
    """Yield what is shown in the documentation."""
    unit = "× one load"
    for targets in SHOWN:
        for name in ("star", "doubling", "ideal chain"):
            least = compared("optimum", targets)
            yield Figure(f"formula: {name}, {targets:,} targets", compared(name, targets), unit, "optimum", least)
    for scenario, outcomes in results.items():
        for outcome in outcomes:
            if outcome.targets in SHOWN:
                yield Figure(
                    f"{scenario.name}, {outcome.targets:,} targets",
                    outcome.ratio,
                    unit,
                    "lower bound",
                    scenario.least(outcome.targets),
                    target="nobody gives up",
                    met=outcome.gave_up == 0,
                    note=f"{outcome.questions:.2f} questions a target",
                )


def ratios(results: Results, numbers: Sequence[int]) -> Table:
    """Return the table of time to N over time to one."""
    table = Table(title="time to N / time to one", title_justify="left")
    table.add_column("")
    for targets in numbers:
        table.add_column(f"{targets:,}", justify="right")
    for name in COMPARED:
        table.add_row(name, *(f"{compared(name, targets):.2f}" for targets in numbers), style="dim")
    for scenario, outcomes in results.items():
        table.add_row(scenario.name, *(f"{outcome.ratio:.2f}" for outcome in outcomes))
    return table


def costs(results: Results) -> Table:
    """Return the table of what joining took, for the most targets."""
    table = Table(title=f"with {next(iter(results.values()))[-1].targets:,} targets", title_justify="left")
    headings = ("median", "died", "gave up", "questions", "most", "refusals", "stalls", "fetched twice", "seeds sent")
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    for scenario, outcomes in results.items():
        o = outcomes[-1]
        times = (f"{o.median_ratio:.2f}", str(o.died), str(o.gave_up), f"{o.questions:.2f}", str(o.most_questions))
        rest = (f"{o.refusals:.2f}", str(o.stalls), f"{o.twice:.3f} models", f"{o.seed_models:.1f} models")
        table.add_row(scenario.name, *times, *rest)
    return table


def chart(results: Results, numbers: Sequence[int]) -> None:
    """Draw the results."""

    def line(scenario: Scenario) -> Points:
        return [(outcome.targets, outcome.ratio) for outcome in results[scenario]]

    formulas = {name: [(n, compared(name, n)) for n in numbers] for name in ("star", "doubling", "optimum")}
    undisturbed = {
        "chain, 16 GB": BURST,
        "tree of two, 16 GB": TREE,
        "chain, 16 MiB chunks": FINE,
        "chain, 141 GB": LARGE,
    }
    others = [scenario for scenario in SCENARIOS if scenario not in undisturbed.values()]
    lines = {name: line(scenario) for name, scenario in undisturbed.items()}
    draw(CHART, {**lines, **formulas}, {scenario.name: line(scenario) for scenario in others})


def main() -> None:
    """Simulate, print, and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fan_out", description=__doc__)
    parser.add_argument("--most", type=int, default=MOST, help="Targets at most; fewer than 1024 writes nothing.")
    given = parser.parse_args()
    numbers = [1 << power for power in range(given.most.bit_length())]
    machine = Machine.this()
    results = simulate(numbers)
    console = Console(width=160)
    console.print(ratios(results, numbers), costs(results))
    if given.most < MOST:
        return
    report = {
        "machine": asdict(machine),
        "figures": [figure.fields() for figure in figures(results)],
        "runs": {scenario.name: [asdict(outcome) for outcome in outcomes] for scenario, outcomes in results.items()},
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    chart(results, numbers)


if __name__ == "__main__":
    main()
