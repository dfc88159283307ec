"""A target's life: it arrives, finds its place with the real `search`, receives, becomes a source, or dies."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.fan_out.fleet import Fleet, Lease, Worker
from benchmarks.fan_out.reception import Reception
from modelexpress.errors import SourceBusy
from modelexpress.peer.joining import Admitted, Answer, Refused, search
from modelexpress.wire.records import Asking, Member

Steps = Generator[simpy.Event, Any, None]
Finding = Generator[simpy.Event, Any, Member | None]
Asked = Generator[simpy.Event, Any, Answer]


@dataclass(eq=False)
class Target:
    """One worker that wants the material.

    Args:
        worker: Which.
        start: When it begins, in seconds.
    """

    worker: Worker
    start: float = 0.0
    finished: float | None = None
    gave_up: bool = False
    questions: int = 0
    refusals: int = 0
    searches: int = 0
    stalls: int = 0
    reception: Reception | None = None
    lost: set[str] = field(default_factory=set)
    above: tuple[Member, ...] = ()

    @property
    def fleet(self) -> Fleet:
        """The fleet that it belongs to."""
        return self.worker.fleet

    @property
    def seconds(self) -> float | None:
        """From its start until it had everything."""
        return None if self.finished is None else self.finished - self.start

    def live(self) -> Steps:
        """Do everything from the start to the publication."""
        try:
            yield self.fleet.env.timeout(self.start)
            yield from self._fill()
        except simpy.Interrupt:
            if self.reception is not None:
                self.reception.close()
            self.worker.die()

    def _fill(self) -> Steps:
        worker = self.worker
        while not worker.complete:
            found = yield from self._search()
            if found is None:
                self.gave_up = True
                worker.die()
                return
            yield from self._receive(self.fleet.workers[found.worker_id])
            self.lost.add(found.worker_id)
        self.finished = worker.times[-1]
        self.fleet.publish(worker)

    def _search(self) -> Finding:
        self.searches += 1
        yield self.fleet.env.timeout(self.fleet.setup.listing)
        asking = Asking(self.worker.member, self.worker.prefix, self.searches > 1, frozenset(self.lost))
        searching = search([*self.above, *self.fleet.candidates(self.worker)], asking)
        try:
            member, asking = next(searching)
            while True:
                answer = yield from self._ask(self.fleet.workers[member.worker_id], asking)
                member, asking = searching.send(answer)
        except StopIteration as end:
            found: Member | None = end.value
        return found

    def _ask(self, asked: Worker, asking: Asking) -> Asked:
        """Ask one worker: wait for the line before it, then for it to have something to read, then for its answer."""
        env, setup = self.fleet.env, self.fleet.setup
        self.questions += 1
        self.worker.admission.upstream = asked.member.worker_id
        yield env.timeout(setup.question / 2)
        if asked.alive:
            asked.busy_until = max(asked.busy_until, env.now) + 1 / setup.answers
            yield env.timeout(asked.busy_until - env.now)
        if asked.alive and not asked.opened:
            yield asked.placed | env.timeout(setup.patience)
        answer = self._answer(asked, asking)
        self.refusals += isinstance(answer, Refused)
        yield env.timeout(setup.question / 2)
        return answer

    def _answer(self, asked: Worker, asking: Asking) -> Answer:
        if not asked.alive:
            self.lost.add(asked.member.worker_id)
            return Refused()
        if not asked.opened:
            return Refused()
        try:
            answer = asked.admission.decide(asking, asked.readings())
        except SourceBusy:
            return Refused()
        if isinstance(answer, Admitted):
            asked.leases[asking.member.worker_id] = Lease(self.worker, self.fleet.env.now)
            self.above = answer.above
            self.worker.admission.above = (asked.member, *answer.above)
        return answer

    def _receive(self, source: Worker) -> Steps:
        """Read until the worker is complete, its source is lost, or nothing comes any more."""
        worker, env = self.worker, self.fleet.env
        worker.open()
        if not source.alive:
            yield env.timeout(self.fleet.setup.detection)
        else:
            self.reception = Reception(worker, source)
            yield from self._watch(self.reception)
            worker.wasted += self.reception.close()
            self.reception = None
            source.leases.pop(worker.member.worker_id, None)

    def _watch(self, reception: Reception) -> Steps:
        while not reception.over.triggered:
            before = self.worker.arrived
            yield reception.over | self.fleet.env.timeout(self.fleet.setup.stall)
            if self.worker.arrived == before and not reception.over.triggered:
                self.stalls += 1
                return
