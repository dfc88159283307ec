"""Joining: who reads from whom. There is no network in it: workers and the simulation run the same code.

A source lets few readers in. Whoever else asks is sent on to the readers, newest places first filled from the oldest
on, so that a limit of one makes a chain and a limit of k a tree of k branches. Nobody schedules: a source knows whom
it sent where, and each target finds its own place with `search`.
"""

from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

from modelexpress.errors import SourceBusy
from modelexpress.wire.records import Asking, Member

MOST_HINTS = 4
"""Members that a redirection names: the first is the place that is meant, the others are for when it is gone."""
MOST_AVOIDED = 64
"""Members that a target says it got nothing from, at most."""
MOST_QUESTIONS = 32
"""Members that a target asks on behalf of one source before it insists on the source itself."""
_REMEMBERED = 1024


@dataclass(frozen=True)
class Reading:
    """A reader that a source has, and the leading chunks that it said it has, verified."""

    member: Member
    chunks: int = 0


@dataclass(frozen=True)
class Admitted:
    """The target may read.

    Args:
        above: Whom to ask when the one that admits is gone: those that it gets its own bytes from, nearest first.
    """

    above: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Redirected:
    """The target shall ask these, in this order."""

    members: tuple[Member, ...]


@dataclass(frozen=True)
class Refused:
    """Nothing came of asking: it is gone, unreachable or full."""


Answer = Admitted | Redirected | Refused
Question = tuple[Member, Asking]


@dataclass
class _Place:
    """A target that was let in or sent on, and how many others were sent to it."""

    member: Member
    sent: int = 0


@dataclass
class Admission:
    """Decides, for one material of one worker, who reads here and who joins further down.

    Args:
        limit: Readers to serve at once, as long as the others can read from them.
        most: Readers to serve at once in any case.
        upstream: Worker id of the one that this worker itself reads from, or "".
        above: The one that this worker itself reads from, and those above that, nearest first.
    """

    limit: int
    most: int
    upstream: str = ""
    above: tuple[Member, ...] = ()
    _places: deque[_Place] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def decide(self, asking: Asking, readers: Sequence[Reading]) -> Admitted | Redirected:
        """Return whether a target may read here, or whom it shall ask.

        Args:
            asking: The target.
            readers: Those that hold a lease.

        Raises:
            SourceBusy: It can be neither, now.
        """
        asker = asking.member.worker_id
        if asker == self.upstream:
            raise SourceBusy("this worker reads from the one that asks: two cannot feed one another")
        self._forget(asking.avoid | {asker})
        others = [r for r in readers if r.member.worker_id not in asking.avoid and r.member.worker_id != asker]
        if len(others) >= self.limit and (hints := self._hints(asking, others)):
            self._place(asking.member)
            return Redirected(tuple(hints[:MOST_HINTS]))
        if len(readers) >= self.most:
            raise SourceBusy(f"this worker already serves {self.most} readers: try another source, or later")
        self._place(asking.member)
        return Admitted(self.above[:MOST_HINTS])

    def _hints(self, asking: Asking, readers: Sequence[Reading]) -> list[Member]:
        """Return whom to ask, best first."""
        relays = [reader for reader in readers if reader.member.endpoint]
        if asking.returning or asking.chunks:
            # Only those that certainly do not wait for the asker: who reads here and is at least as far.
            ahead = [reader for reader in relays if reader.chunks >= max(asking.chunks, 1)]
            return [reader.member for reader in sorted(ahead, key=lambda reader: -reader.chunks)]
        free = next((place for place in self._places if place.sent < self.limit), None)
        newest = [place.member for place in reversed(self._places) if place is not free]
        known = newest[: MOST_HINTS - 1] if free else newest
        if free is not None:
            free.sent += 1
            known = [free.member, *known]
        return known + [reader.member for reader in relays if reader.member not in known]

    def _place(self, member: Member) -> None:
        if member.endpoint:
            self._places.append(_Place(member))

    def _forget(self, gone: Collection[str]) -> None:
        if any(place.member.worker_id in gone for place in self._places):
            kept = [place for place in self._places if place.member.worker_id not in gone]
            self._places = deque(kept, maxlen=_REMEMBERED)


def search(sources: Iterable[Member], asking: Asking) -> Generator[Question, Answer, Member | None]:
    """Find one that lets a target read, as a generator: it yields whom to ask and what, and is sent the answer.

    Args:
        sources: Complete sources, best first; taken one by one as they are needed.
        asking: The target.

    Returns:
        The member that admitted the target; None: nobody does.
    """
    gone = set(asking.avoid)
    for source in sources:
        if source.worker_id in gone:
            continue
        found = yield from _join(source, asking, gone)
        if found is not None:
            return found
        gone.add(source.worker_id)
    return None


def _join(source: Member, asking: Asking, gone: set[str]) -> Generator[Question, Answer, Member | None]:
    """Ask a source and whom it names, again and again; at last it can name nobody and lets the target in itself."""
    asked = {source.worker_id}
    named: list[str] = []
    while isinstance(answer := (yield source, _avoiding(asking, named, gone)), Redirected):
        new = [member for member in answer.members if member.worker_id not in named]
        if not new or len(named) >= MOST_AVOIDED:
            return None
        named += [member.worker_id for member in new]
        found = yield from _follow(new, asking, asked, gone)
        if found is not None:
            return found
    return source if isinstance(answer, Admitted) else None


def _follow(
    members: Sequence[Member], asking: Asking, asked: set[str], gone: set[str]
) -> Generator[Question, Answer, Member | None]:
    """Ask along redirections, depth first; who is of no use at all is added to `gone`."""
    waiting = deque(members)
    while waiting and len(asked) < MOST_QUESTIONS:
        member = waiting.popleft()
        if member.worker_id in asked or not member.endpoint:
            continue
        asked.add(member.worker_id)
        answer = yield member, _avoiding(asking, (), gone)
        if isinstance(answer, Admitted):
            return member
        if isinstance(answer, Redirected):
            waiting.extendleft(reversed(answer.members))
        else:
            gone.add(member.worker_id)
    return None


def _avoiding(asking: Asking, named: Sequence[str], gone: Collection[str]) -> Asking:
    """Return the question, with those that must not be named again before the others, in case these are too many."""
    avoid = [*named, *sorted(gone)]
    return replace(asking, avoid=frozenset(avoid[:MOST_AVOIDED]))
