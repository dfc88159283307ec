"""What was measured of shared experts, beside the limits of the same run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.gpu_dwdp_foreseen import foreseen
from modelexpress.cli.figure import Figure
from modelexpress.dwdp.foresee import Foresight

Run = Mapping[str, Any]
ALLOWANCE = 64 << 20
ENOUGH = 1.5
"""Times the prefetch that compute takes where there is time to hide it."""


def figures(runs: Mapping[str, Run]) -> list[Figure]:
    """Return a figure for each thing that was measured.

    Args:
        runs: What each part returned; those that were not run, or failed, are left out. Where one says
            `another_run`, its figures do, too.
    """
    found: list[Figure] = []
    limit = runs.get("limit", {}).get("peer_copy", 0.0)
    if limit:
        found += _named(runs["limit"], [Figure("peer copy, one device to another", limit, "GB/s")])
    for name, make in (("prefetch", _prefetch), ("slices", _slices), ("theirs", _theirs)):
        if "rate" in runs.get(name, {}):
            found += _named(runs[name], make(runs[name], limit))
    for name, make_from in (("ideal", _ideal), ("experts", _parallel), ("scaling", _scaling)):
        if name in runs and "skipped" not in runs[name] and "failed" not in runs[name]:
            found += _named(runs[name], make_from(runs[name]))
    return found


def _named(run: Run, made: Iterable[Figure]) -> Iterator[Figure]:
    """Say of each figure that it is from another run, where it is."""
    for figure in made:
        yield replace(figure, name=f"{figure.name} ({run['another_run']})") if "another_run" in run else figure


def _prefetch(run: Run, limit: float) -> Iterator[Figure]:
    met = run["rate"] >= 0.93 * limit if limit else None
    yield Figure("prefetch alone, all ranks at once, a rank", run["rate"], "GB/s", "peer copy", limit, "≥ 0.93 ×", met)
    yield Figure("prefetch alone, one rank at a time", run["alone_rate"], "GB/s", "peer copy", limit)
    refused = "the driver took no batches: copies went one by one" if run["batches_refused"] else ""
    yield Figure("host: wait and release of a layer", run["host_us"], "µs", note=refused)
    allowed = run["own_bytes"] + 2 * run["slot_bytes"] + ALLOWANCE
    yield Figure(
        "expert memory of a rank",
        run["expert_bytes"] / 2**30,
        "GiB",
        "all experts",
        run["all_bytes"] / 2**30,
        f"≤ {allowed / 2**30:.2f}: its part, two slots, 64 MiB",
        run["expert_bytes"] <= allowed if run["expert_bytes"] else None,
    )


def _slices(run: Run, limit: float) -> Iterator[Figure]:
    yield Figure("prefetch alone in slices of 2 MiB, all ranks at once", run["rate"], "GB/s", "peer copy", limit)


def _theirs(run: Run, limit: float) -> Iterator[Figure]:
    name = "sglang 0.5.23, its modules driven directly"
    yield Figure(f"{name}: prefetch alone", run["rate"], "GB/s", "peer copy", limit)
    yield Figure(
        "the same, ours", run["our_rate"], "GB/s", "theirs", run["rate"], "≥ 1 ×", run["our_rate"] >= run["rate"]
    )
    total = run["ranks"] * run["tokens"]
    ours, others = total / run["our_forward"] / 1e3, total / run["forward"] / 1e3
    words = f"{run['tokens']:,} tokens a rank: ours"
    note = "outputs equal" if run["same"] else "outputs differ"
    yield Figure(words, ours, "thousand tokens/s", name, others, "≥ 1 ×", ours >= others, note)


def _ideal(run: Run) -> Iterator[Figure]:
    total = 1e-3 * run["ranks"]
    for point in run["points"]:
        hidden = point["resident"] / run["fetch"]
        ours, most = (total * point["tokens"] / point[name] for name in ("dwdp", "resident"))
        counts = hidden >= ENOUGH
        yield Figure(
            f"{point['tokens']:,} tokens a rank, compute {hidden:.2f} × prefetch",
            ours,
            "thousand tokens/s",
            "all experts resident",
            most,
            "≥ 0.95 ×" if counts else "",
            ours >= 0.95 * most if counts else None,
            "outputs equal to the bit" if point["same"] else "outputs differ",
        )
    per_layer = 1e3 / run["layers"]
    yield Figure("prefetch of a layer", per_layer * run["fetch"], "ms")
    plan = foreseen(run)
    if plan is not None:
        for point in run["points"]:
            expected = plan.compute_seconds(point["tokens"]) or 0.0
            words = f"a layer of {point['tokens']:,} tokens, all experts resident"
            yield Figure(words, per_layer * point["resident"], "ms", "the plan", 1e3 * expected)
    yield from _crossover(run, plan)


def _crossover(run: Run, plan: Foresight | None) -> Iterator[Figure]:
    words, unit = "tokens a rank that hide the prefetch", "thousand tokens"
    measured, apart = crossover(run), crossover_of_parts(run)
    if measured is None:
        return
    if plan is not None and plan.hidden_from:
        predicted, met = plan.hidden_from, abs(measured - plan.hidden_from) <= 0.15 * plan.hidden_from
        note = "recomputed from the run's numbers" if run.get("recomputed") else ""
        inputs = _inputs(plan) + (f"; {note}" if note else "")
        yield Figure(words, measured / 1e3, unit, inputs, predicted / 1e3, "within 15 %", met, note)
    if apart is not None:
        limit = "where compute, all experts resident, lasts as long as the prefetch alone"
        yield Figure(f"{words}, the run against itself", measured / 1e3, unit, limit, apart / 1e3)


def _inputs(plan: Foresight) -> str:
    """Return what the plan was told, of which only the bandwidth is of the run."""
    speed = plan.speed
    return (
        f"`mx dwdp plan` with {speed.bandwidth / 1e9:.0f} GB/s as measured, {speed.flops / 1e12:g} TFLOP/s, "
        f"{speed.memory_bandwidth / 1e12:g} TB/s, prompts of {speed.prompt:,}"
    )


def crossover(run: Run) -> float | None:
    """Return how many tokens hide the prefetch, as measured.

    That is where the line through the points that are bound by compute meets the time of the fewest tokens, which is
    bound by the prefetch. None, where no point is bound by it, or less than two by compute.
    """
    points = sorted(run["points"], key=lambda point: point["tokens"])
    bound = [point for point in points if point["resident"] >= ENOUGH * run["fetch"]]
    if len(bound) < 2 or points[0]["resident"] >= run["fetch"]:
        return None
    start, slope = _line(bound[0], bound[-1], "dwdp")
    return float((points[0]["dwdp"] - start) / slope)


def crossover_of_parts(run: Run) -> float | None:
    """Return where the time with all experts resident is that of the prefetch alone: both are of the same run.

    It says whether the two overlap as they should, and nothing about what foresees them.
    """
    points = sorted(run["points"], key=lambda point: point["tokens"])
    above = next((number for number, point in enumerate(points) if point["resident"] >= run["fetch"]), 0)
    if not above:
        return None
    start, slope = _line(points[above - 1], points[above], "resident")
    return float((run["fetch"] - start) / slope)


def _line(first: Run, last: Run, name: str) -> tuple[float, float]:
    slope = (last[name] - first[name]) / (last["tokens"] - first["tokens"])
    return first[name] - slope * first["tokens"], slope


def _parallel(run: Run) -> Iterator[Figure]:
    total = 1e-3 * run["ranks"]
    for point in run["points"]:
        ours, others = (total * point["tokens"] / point[name] for name in ("dwdp", "parallel"))
        yield Figure(
            f"{point['tokens']:,} tokens a rank, loads of the ranks vary by {100 * point['variation']:.0f} %",
            ours,
            "thousand tokens/s",
            "expert parallelism, NCCL all-to-all",
            others,
            "≥ 1.10 ×",
            ours >= 1.1 * others,
            f"outputs differ by {point['error']:.4f}, as another order of sums does",
        )


def _scaling(run: Run) -> Iterator[Figure]:
    half = 1e-3 * run["half"]
    for name, words in (("two halves", "two groups of half the ranks"), ("all", "one group of all ranks")):
        rate = 1e-3 * run[name]
        yield Figure(
            f"{run['ranks']} ranks, {words}, {run['tokens']:,} tokens a rank",
            rate,
            "thousand tokens/s",
            f"{run['ranks'] // 2} ranks",
            half,
            "≥ 1.9 ×",
            rate >= 1.9 * half,
        )


def lines(runs: Mapping[str, Run]) -> Mapping[str, Sequence[tuple[int, float]]]:
    """Return the lines of the chart: milliseconds of a layer over tokens a rank."""
    found: dict[str, Sequence[tuple[int, float]]] = {}
    ideal, layers = runs.get("ideal", {}), runs.get("ideal", {}).get("layers", 1)
    scale = 1e3 / layers
    if "points" in ideal:
        for name, words in (("resident", "all experts resident"), ("dwdp", "shared experts")):
            found[words] = [(point["tokens"], scale * point[name]) for point in ideal["points"]]
        if (plan := foreseen(ideal)) is not None:
            expected = [(point["tokens"], plan.compute_seconds(point["tokens"]) or 0.0) for point in ideal["points"]]
            found["all experts resident, as foreseen"] = [(tokens, 1e3 * seconds) for tokens, seconds in expected]
        found["prefetch alone"] = [(point["tokens"], scale * ideal["fetch"]) for point in ideal["points"]]
        parallel = runs.get("experts", {}).get("points", [])
        for words, varied in (("expert parallelism", False), ("the same, loads vary by 20 %", True)):
            chosen = [point for point in parallel if (point["variation"] > 0.1) == varied]
            if chosen:
                found[words] = [(point["tokens"], scale * point["parallel"]) for point in chosen]
    return found
