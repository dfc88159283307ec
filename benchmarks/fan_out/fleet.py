"""A fleet: its workers, what each has verified and whom it serves, and the registry that lists the complete ones."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import simpy

from benchmarks.fan_out.links import Uplink
from modelexpress.peer.joining import Admission, Reading
from modelexpress.weights.candidates import order_candidates
from modelexpress.wire.records import Member, SourceRef

if TYPE_CHECKING:
    from benchmarks.fan_out.reception import Reception

Decide = Callable[[int, int], Admission]


@dataclass(frozen=True)
class Setup:
    """What everything takes: bytes, bytes per second, and seconds.

    Args:
        model: Bytes of the material.
        chunk: Bytes that travel and are checked together.
        rate: Of a link, either way.
        digest_rate: At which chunks are verified, beside the transfer.
        question: From a question to its answer, when nobody waits in line.
        answers: Questions that one worker answers in a second.
        notice: From a chunk's verification until a reader knows of it.
        listing: The registry's answer.
        publishing: From the last chunk to the registry's list.
        report: Between two reports of a reader to its source.
        detection: From a death until the readers know.
        patience: How long a worker that reads from nobody yet keeps an asker waiting.
        stall: A reader that gets nothing for so long goes elsewhere.
        lease: A lease ends after so long without a report.
        listed: A dead source stays in the registry for so long.
        limit: Readers of a source, as long as they can be read from.
        most: Readers of a source in any case.
    """

    model: float = 16.06e9
    chunk: float = float(64 << 20)
    rate: float = 12.5e9
    digest_rate: float = 50e9
    question: float = 1e-3
    answers: float = 2000.0
    notice: float = 1e-3
    listing: float = 1e-3
    publishing: float = 10e-3
    report: float = 1.0
    detection: float = 50e-3
    patience: float = 3.0
    stall: float = 30.0
    lease: float = 30.0
    listed: float = 90.0
    limit: int = 1
    most: int = 64

    @property
    def chunks(self) -> int:
        """Of the material; the last one counts as a whole one."""
        return math.ceil(self.model / self.chunk)

    @property
    def alone(self) -> float:
        """Seconds that one target takes that has a source for itself, from the question to the registry on."""
        return self.listing + self.question + (self.chunks * self.chunk) / self.rate + self.chunk / self.digest_rate


@dataclass
class Lease:
    """What a source knows of one reader: it hears from it at intervals."""

    reader: "Worker"
    granted: float


@dataclass(eq=False)
class Worker:
    """One worker of the fleet: its links, its verified prefix and the leases that it granted.

    Args:
        fleet: Which it belongs to.
        member: Its name and address.
        rate: Of its link, either way, in bytes per second.
        times: When each of its leading chunks was verified.
    """

    fleet: "Fleet"
    member: Member
    rate: float
    times: list[float] = field(default_factory=list)
    leases: dict[str, Lease] = field(default_factory=dict)
    alive: bool = True
    died: float = math.inf
    arrived: int = 0
    wasted: float = 0.0
    busy_until: float = 0.0
    opened: bool = False
    readers: list["Reception"] = field(default_factory=list)
    hungry: list["Reception"] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uplink = Uplink(self.fleet.env, self.rate)
        self.admission = Admission(self.fleet.setup.limit, self.fleet.setup.most)
        self.placed = self.fleet.env.event()

    @property
    def prefix(self) -> int:
        """Leading chunks that are verified."""
        return len(self.times)

    @property
    def complete(self) -> bool:
        """Whether all are."""
        return len(self.times) == self.fleet.setup.chunks

    def open(self) -> None:
        """Serve from now on: whoever waited for this worker to begin is let go on."""
        self.opened = True
        if not self.placed.triggered:
            self.placed.succeed()

    def readings(self) -> Sequence[Reading]:
        """Return the readers as their last reports have them, without those that were silent for too long."""
        setup, now = self.fleet.setup, self.fleet.env.now
        found = []
        for name, lease in list(self.leases.items()):
            heard = (
                lease.granted + math.floor((min(now, lease.reader.died) - lease.granted) / setup.report) * setup.report
            )
            if now - heard > setup.lease:
                del self.leases[name]
            else:
                found.append(Reading(lease.reader.member, bisect_right(lease.reader.times, heard)))
        return found

    def die(self) -> None:
        """Stop serving, from now on and for ever."""
        self.alive = False
        self.died = self.fleet.env.now
        if not self.placed.triggered:
            self.placed.succeed()
        for reception in list(self.readers):
            reception.lose(self.fleet.setup.detection)


class Fleet:
    """All workers, and the registry.

    Args:
        setup: What everything takes.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.env = simpy.Environment()
        self.workers: dict[str, Worker] = {}
        self._listed: list[Worker] = []

    def add(self, rate: float, *, complete: bool = False) -> Worker:
        """Return a new worker; a complete one is in the registry already."""
        name = f"worker-{len(self.workers):04}"
        times = [-math.inf] * self.setup.chunks if complete else []
        worker = self.workers[name] = Worker(self, Member(name, name), rate, times)
        if complete:
            worker.open()
            self._listed.append(worker)
        return worker

    def publish(self, worker: Worker) -> None:
        """Put a worker into the registry when that has heard of it."""
        due = self.env.timeout(self.setup.publishing)
        due.callbacks.append(lambda _: self._listed.append(worker))

    def candidates(self, reader: Worker) -> list[Member]:
        """Return the complete sources that the registry lists, in the order in which a target asks them."""
        oldest = self.env.now - self.setup.listed
        refs = [SourceRef(source_id="0", worker_id=w.member.worker_id) for w in self._listed if w.died > oldest]
        ordered = order_candidates(refs, host=reader.member.worker_id, reader=reader.member.worker_id)
        return [self.workers[ref.worker_id].member for ref in ordered if ref.worker_id != reader.member.worker_id]
