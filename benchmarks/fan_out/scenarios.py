"""Scenarios: who arrives when, how fast the links are, who dies; and what came of it."""

import random
import statistics
from dataclasses import dataclass

import simpy

from benchmarks.fan_out.bounds import optimum
from benchmarks.fan_out.fleet import Fleet, Setup, Worker
from benchmarks.fan_out.target import Steps, Target

USUAL = Setup()
_SLOW = 0.25


@dataclass(frozen=True)
class Scenario:
    """One way in which a fleet fills.

    Args:
        name: For people.
        setup: What everything takes.
        seeds: Complete sources at the start.
        seed_rate: Of their links, in bytes per second; None: as everyone's.
        window: Targets arrive at random within so many seconds; 0: all at once.
        slow: Part of the targets whose links have a quarter of the speed.
        deaths: Part of the targets that die before they are complete.
        seed_deaths: Seeds that die in the middle.
    """

    name: str
    setup: Setup = USUAL
    seeds: int = 1
    seed_rate: float | None = None
    window: float = 0.0
    slow: float = 0.0
    deaths: float = 0.0
    seed_deaths: int = 0

    def least(self, targets: int) -> float:
        """Return the time that no way to fill the fleet can beat, over the time of one target alone."""
        slowest = self.setup.rate * _SLOW if round(self.slow * targets) else None
        together = 1 if self.window else targets
        bound = optimum(self.setup, together, seeds=self.seeds, seed_rate=self.seed_rate, slowest=slowest)
        return bound / self.setup.alone


BURST = Scenario("all at once, limit 1: a chain")
TREE = Scenario("all at once, limit 2: a tree", Setup(limit=2))
FINE = Scenario("a chain, chunks of 16 MiB", Setup(chunk=float(16 << 20)))
LARGE = Scenario("a chain, 141 GB", Setup(model=141.1e9))
SCENARIOS = (
    BURST,
    TREE,
    FINE,
    LARGE,
    Scenario("at random within 30 s, limit 1", window=30.0),
    Scenario("a chain, every fifth link at a quarter of the speed", slow=0.2),
    Scenario("a chain, the seed's link capped at a quarter", seed_rate=USUAL.rate / 4),
    Scenario("a chain, 5 % die", deaths=0.05),
    Scenario("a tree, 5 % die", Setup(limit=2), deaths=0.05),
    Scenario("two chains, one of two seeds dies", seeds=2, seed_deaths=1),
)


@dataclass(frozen=True)
class Outcome:
    """What came of one scenario with a number of targets; times in seconds.

    Args:
        targets: How many there were.
        last: The longest that a target which lived took, from its start on.
        median: What half of them took at most.
        ratio: `last` over the time of one target alone.
        median_ratio: `median` over the time of one target alone.
        died: Targets.
        gave_up: Targets that lived and found no source.
        questions: Asked per target, on average.
        most_questions: Asked by one target.
        refusals: Questions of which nothing came, per target.
        stalls: Readers that went elsewhere because nothing came.
        twice: Bytes fetched twice, as a part of one model.
        seed_models: Models that the seeds sent.
    """

    targets: int
    last: float
    median: float
    ratio: float
    median_ratio: float
    died: int
    gave_up: int
    questions: float
    most_questions: int
    refusals: float
    stalls: int
    twice: float
    seed_models: float


def run(scenario: Scenario, targets: int, seed: int = 0) -> Outcome:
    """Return what comes of a scenario; the same arguments give the same result."""
    chance = random.Random(f"{scenario.name} {targets} {seed}")
    fleet = Fleet(scenario.setup)
    rate = scenario.setup.rate
    seeds = [fleet.add(scenario.seed_rate or rate, complete=True) for _ in range(scenario.seeds)]
    slow = set(chance.sample(range(targets), round(scenario.slow * targets)))
    workers = [fleet.add(rate * _SLOW if number in slow else rate) for number in range(targets)]
    filling = [Target(worker, chance.uniform(0, scenario.window)) for worker in workers]
    lives = [fleet.env.process(target.live()) for target in filling]
    horizon = scenario.setup.alone * _expected(scenario.setup, targets)
    for number in chance.sample(range(targets), round(scenario.deaths * targets)):
        fleet.env.process(_kill(fleet, lives[number], filling[number].start + chance.uniform(0, horizon)))
    for worker in seeds[: scenario.seed_deaths]:
        fleet.env.process(_end(fleet, worker, chance.uniform(0.2, 0.8) * horizon))
    fleet.env.run(fleet.env.all_of(lives))
    return _outcome(scenario, filling, sum(worker.uplink.sent for worker in seeds))


def _kill(fleet: Fleet, life: simpy.Process, when: float) -> Steps:
    yield fleet.env.timeout(when)
    if life.is_alive:
        life.interrupt()


def _end(fleet: Fleet, worker: Worker, when: float) -> Steps:
    yield fleet.env.timeout(when)
    worker.die()


def _expected(setup: Setup, targets: int) -> float:
    """Return about how long a burst takes, over the time of one target alone."""
    hop = (setup.chunk / setup.rate + setup.chunk / setup.digest_rate + setup.notice) / setup.alone
    return 1 + targets * hop if setup.limit == 1 else setup.limit


def _outcome(scenario: Scenario, filling: list[Target], sent: float) -> Outcome:
    done = [target.seconds for target in filling if target.seconds is not None]
    asked = [target.questions for target in filling]
    last, median = max(done, default=0.0), statistics.median(done or [0.0])
    alone, model = scenario.setup.alone, scenario.setup.chunks * scenario.setup.chunk
    return Outcome(
        targets=len(filling),
        last=last,
        median=median,
        ratio=last / alone,
        median_ratio=median / alone,
        died=sum(t.finished is None and not t.gave_up for t in filling),
        gave_up=sum(t.gave_up for t in filling),
        questions=statistics.mean(asked),
        most_questions=max(asked),
        refusals=statistics.mean(t.refusals for t in filling),
        stalls=sum(t.stalls for t in filling),
        twice=sum(t.worker.wasted for t in filling) / model,
        seed_models=sent / model,
    )
