"""What was measured of shared experts, beside the limits of the same run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelexpress.cli.figure import Figure

Run = Mapping[str, Any]
ALLOWANCE = 64 << 20
ENOUGH = 1.5
"""Times the prefetch that compute takes where there is time to hide it."""


def figures(runs: Mapping[str, Run]) -> list[Figure]:
    """Return a figure for each thing that was measured.

    Args:
        runs: What each part returned; those that were not run, or failed, are left out.
    """
    found: list[Figure] = []
    limit = runs.get("limit", {}).get("peer_copy", 0.0)
    if limit:
        found.append(Figure("peer copy, one device to another", limit, "GB/s"))
    for name, make in (("prefetch", _prefetch), ("slices", _slices), ("theirs", _theirs)):
        if "rate" in runs.get(name, {}):
            found += make(runs[name], limit)
    for name, make_from in (("ideal", _ideal), ("experts", _parallel), ("scaling", _scaling)):
        if name in runs and "skipped" not in runs[name] and "failed" not in runs[name]:
            found += make_from(runs[name])
    return found


def _prefetch(run: Run, limit: float) -> Iterator[Figure]:
    met = run["rate"] >= 0.93 * limit if limit else None
    yield Figure("prefetch alone, all ranks at once, a rank", run["rate"], "GB/s", "peer copy", limit, "≥ 0.93 ×", met)
    yield Figure("prefetch alone, one rank at a time", run["alone_rate"], "GB/s", "peer copy", limit)
    refused = "the driver refused batches: copies went one by one" if run["batches_refused"] else ""
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
    crossing = crossover(run)
    if crossing is not None:
        measured, predicted = crossing
        met = abs(measured - predicted) <= 0.15 * predicted
        yield Figure(
            "tokens a rank that hide the prefetch", measured, "tokens", "predicted", predicted, "within 15 %", met
        )


def crossover(run: Run) -> tuple[float, float] | None:
    """Return how many tokens hide the prefetch: as measured, and as predicted from what was measured apart.

    Predicted: where the time with all experts resident (experts of one layer, attention of the next) is that of the
    prefetch alone. Measured: where the line through the points that are bound by compute meets the time of the fewest
    tokens, which is bound by the prefetch. None, where no point is bound by it, or less than two by compute.
    """
    points = sorted(run["points"], key=lambda point: point["tokens"])
    bound = [point for point in points if point["resident"] >= ENOUGH * run["fetch"]]
    if len(bound) < 2 or points[0]["resident"] >= run["fetch"]:
        return None
    start, slope = _line(bound[0], bound[-1], "dwdp")
    measured = (points[0]["dwdp"] - start) / slope
    above = next(number for number, point in enumerate(points) if point["resident"] >= run["fetch"])
    start, slope = _line(points[above - 1], points[above], "resident")
    return measured, (run["fetch"] - start) / slope


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
        found["prefetch alone"] = [(point["tokens"], scale * ideal["fetch"]) for point in ideal["points"]]
        parallel = runs.get("experts", {}).get("points", [])
        for words, varied in (("expert parallelism", False), ("the same, loads vary by 20 %", True)):
            chosen = [point for point in parallel if (point["variation"] > 0.1) == varied]
            if chosen:
                found[words] = [(point["tokens"], scale * point["parallel"]) for point in chosen]
    return found
