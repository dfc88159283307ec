"""How long a layer takes, as foreseen: against every time that was measured on H200s, and what holds anywhere."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.gpu_dwdp_figures import crossover, figures
from benchmarks.gpu_dwdp_foreseen import foreseen
from modelexpress.dwdp.foresee import Speed
from modelexpress.dwdp.layer_time import LayerTime
from modelexpress.dwdp.shapes import LayerShape, Work, carried_bytes, gated_experts, gated_flop

ROOT = Path(__file__).parents[2]
RESULT: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "gpu_dwdp.json").read_text())
PAGE = (ROOT / "docs" / "dwdp.md").read_text()
LONG = [point for point in RESULT["runs"]["ideal"]["points"] if point["tokens"] >= 4096]
"""Shorter forwards were not measured when the model was made."""
EXPERTS = LayerShape(0, 128, gated_experts(2048, 768, "bfloat16"))
ROW = gated_flop(2048, 768, 1)


def test_the_crossover_is_foreseen_within_15_percent() -> None:
    """With the bandwidth of the run and nothing else of it: 4,348 tokens, of which the measured 4,178 are 96 %."""
    run = RESULT["runs"]["ideal"]
    plan, measured = foreseen(run), crossover(run)
    assert plan is not None
    assert measured is not None
    assert plan.hidden_from == pytest.approx(measured, rel=0.15)
    assert f"| {round(measured, -1):,.0f} | {round(plan.hidden_from or 0, -1):,} |" in PAGE


def test_the_chart_of_the_page_is_that_of_the_plan() -> None:
    run = RESULT["runs"]["ideal"]
    plan = foreseen({**run, "ranks": 4})
    assert plan is not None
    alone = dataclasses.replace(plan, speed=Speed(prompt=4096))
    assert f"hidden from {alone.hidden_from:,} tokens on" in (ROOT / "docs" / "dwdp-plan.svg").read_text()


@pytest.mark.parametrize("point", LONG, ids=lambda point: str(point["tokens"]))
def test_layers_with_all_experts_resident_take_what_is_foreseen(point: dict[str, Any]) -> None:
    """Foreseen over measured: -4 % for 4,096 tokens, then +5, +8, +8, +12 and +10 % up to 65,536."""
    plan = foreseen(RESULT["runs"]["ideal"])
    assert plan is not None
    expected, measured = plan.compute_seconds(point["tokens"]) or 0.0, point["resident"] / 48
    assert expected == pytest.approx(measured, rel=0.15)
    row = f"{point['tokens']:,} tokens | {1e3 * measured:.2f} ms | {1e3 * expected:.2f} ms |"
    assert row in PAGE


@pytest.mark.parametrize(("tokens", "measured"), [(8192, 1.28e-3), (16384, 2.50e-3), (32768, 5.08e-3)])
def test_grouped_products_take_what_is_foreseen(tokens: int, measured: float) -> None:
    """Foreseen over measured: +11, +7 and +3 %. The 490 TFLOP/s are from there; half-empty tiles are on top."""
    expected = LayerTime(Work(8 * ROW, routed=8, row=ROW), EXPERTS, 490e12, 4.8e12).seconds(tokens)
    assert expected == pytest.approx(measured, rel=0.15)
    row = f"{tokens:,} tokens | {1e3 * measured:.2f} ms | {1e3 * expected:.2f} ms |"
    assert row in PAGE


def test_few_tokens_wait_for_the_weights_that_they_reach() -> None:
    work = Work(8 * ROW, routed=8, row=ROW)
    times = LayerTime(work, EXPERTS, 1e18, 4.8e12)
    assert times.seconds(0) == 0
    assert times.seconds(1) == pytest.approx(EXPERTS.nbytes * 8 / 128 / 4.8e12)
    assert times.seconds(4096) == pytest.approx(EXPERTS.nbytes / 4.8e12)


def test_what_lies_between_products_is_moved_through_memory() -> None:
    work = Work(8 * ROW, routed=8, row=ROW)
    with_it = Work(8 * ROW, routed=8, row=ROW, carried=carried_bytes(2048, 8 * 768, 8))
    assert with_it.carried == 2 * (28 * 2048 + 3 * 8 * 768)
    plain, more = (LayerTime(one, EXPERTS, 490e12, 4.8e12).seconds(8192) for one in (work, with_it))
    assert more - plain == pytest.approx(8192 * with_it.carried / 4.8e12)


@given(st.integers(0, 1 << 20), st.integers(0, 1 << 12), st.integers(1, 128), st.integers(0, 4096))
def test_more_tokens_never_take_less(tokens: int, more: int, routed: int, prompt: int) -> None:
    work = Work(routed * ROW, 1e6, 1e3, None, routed, ROW, 1e5)
    times = LayerTime(work, EXPERTS, 490e12, 4.8e12, prompt)
    assert times.seconds(tokens) <= times.seconds(tokens + more) * (1 + 1e-12)


def test_figures_that_are_written_down_are_those_of_their_run() -> None:
    assert RESULT["figures"] == [figure.fields() for figure in figures(RESULT["runs"])]


def test_what_comes_from_another_run_says_so() -> None:
    kept = {"peer_copy": 390.0, "another_run": "another run"}
    runs: dict[str, dict[str, Any]] = {"limit": kept, "slices": {"rate": 300.0}}
    assert [figure.name.endswith("(another run)") for figure in figures(runs)] == [True, False]
