"""The model of fan-out in benchmarks/fan_out: it agrees with the formulas where there are some."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import simpy

from benchmarks.fan_out import bounds
from benchmarks.fan_out.links import Flow, Uplink
from benchmarks.fan_out.scenarios import BURST, LARGE, SCENARIOS, TREE, Scenario, run

SETUP = replace(BURST.setup, model=64 * BURST.setup.chunk)
SMALL = [replace(s, setup=replace(s.setup, model=64 * s.setup.chunk)) for s in SCENARIOS]


def noting(env: simpy.Environment, ends: list[float]) -> Callable[[], None]:
    return lambda: ends.append(env.now)


def test_flows_get_equal_shares_and_what_a_slow_reader_leaves() -> None:
    env = simpy.Environment()
    uplink, ends = Uplink(env, 100.0), list[float]()
    for most in (100.0, 100.0, 10.0):
        Flow(uplink, most, noting(env, ends)).send(90.0)
    env.run()
    assert ends == pytest.approx([2.0, 2.0, 9.0])
    assert uplink.sent == pytest.approx(270.0)


def test_a_flow_takes_up_what_another_stops_using() -> None:
    env = simpy.Environment()
    uplink, ends = Uplink(env, 100.0), list[float]()
    first, second = (Flow(uplink, 100.0, noting(env, ends)) for _ in range(2))
    first.send(100.0)
    second.send(100.0)
    env.run(until=1.0)
    second.stop()
    env.run()
    assert ends == pytest.approx([1.5])
    assert second.remaining == pytest.approx(50.0)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_one_target_takes_what_its_links_allow(scenario: Scenario) -> None:
    undisturbed = replace(scenario, seed_deaths=0)
    assert run(undisturbed, 1).ratio == pytest.approx(undisturbed.least(1), rel=0.01)


def test_a_chain_costs_a_hop_for_each_target() -> None:
    setup = SETUP
    hop = setup.chunk / setup.rate + setup.chunk / setup.digest_rate + setup.notice
    outcome = run(Scenario("chain", setup), 32)
    assert outcome.last == pytest.approx(setup.alone + 31 * hop, rel=0.02)
    assert outcome.last > bounds.chain(setup, 32)
    assert outcome.seed_models == pytest.approx(1.0)
    assert outcome.most_questions == 2
    assert outcome.refusals == outcome.twice == 0


def test_a_tree_of_two_takes_twice_as_long_as_one() -> None:
    outcome = run(TREE, 30)
    assert outcome.ratio == pytest.approx(2.0, rel=0.05)
    assert outcome.seed_models == pytest.approx(2.0)


def test_a_limit_that_is_never_reached_makes_a_star() -> None:
    outcome = run(Scenario("star", replace(SETUP, limit=64)), 20)
    assert outcome.last == pytest.approx(bounds.star(SETUP, 20), rel=0.01)


def test_the_same_arguments_give_the_same_outcome() -> None:
    for scenario in SMALL:
        assert run(scenario, 24) == run(scenario, 24)
    dying = Scenario("dying", SETUP, deaths=0.5)
    assert run(dying, 24) != run(dying, 24, seed=1)


@pytest.mark.parametrize("scenario", SMALL, ids=lambda scenario: scenario.name)
def test_nothing_is_faster_than_the_bound(scenario: Scenario) -> None:
    for targets in (2, 7, 31):
        outcome = run(scenario, targets)
        assert outcome.ratio >= 0.999 * scenario.least(targets)
        assert outcome.gave_up == 0


def test_formulas_are_in_order() -> None:
    for targets in (1, 2, 3, 64, 1000):
        least = 0.999 * bounds.optimum(LARGE.setup, targets)
        assert least < bounds.chain(LARGE.setup, targets) < 1.001 * bounds.star(LARGE.setup, targets)
    assert bounds.doubling(SETUP, 7) == pytest.approx(3 * bounds.star(SETUP, 1))
    assert bounds.optimum(SETUP, 1) == pytest.approx(bounds.star(SETUP, 1))


def test_where_the_only_source_dies_early_everyone_gives_up() -> None:
    outcome = run(Scenario("lost", SETUP, seed_deaths=1), 8)
    assert outcome.gave_up == 8


def test_those_who_lose_their_source_keep_what_they_have() -> None:
    outcome = run(Scenario("orphans", SETUP, deaths=0.25), 16)
    assert outcome.died > 0
    assert outcome.gave_up == 0
    assert outcome.twice < outcome.died * 3 * SETUP.chunk / SETUP.model
