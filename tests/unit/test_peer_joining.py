"""Joining: who reads from whom, played through step by step in any order, with deaths."""

import random
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelexpress.errors import SourceBusy
from modelexpress.peer.joining import (
    MOST_AVOIDED,
    MOST_QUESTIONS,
    Admission,
    Admitted,
    Answer,
    Question,
    Reading,
    Redirected,
    Refused,
    search,
)
from modelexpress.wire.records import Asking, Member

CHUNKS = 8
CHANCES = st.integers(0, 1 << 32).map(random.Random)
Search = Generator[Question, Answer, Member | None]


def member(name: str) -> Member:
    return Member(name, f"{name}:1")


def asking(name: str, chunks: int = 0, *avoid: str, returning: bool = False) -> Asking:
    return Asking(member(name), chunks, returning, frozenset(avoid))


def reading(name: str, chunks: int = 0) -> Reading:
    return Reading(member(name), chunks)


def names(answer: Admitted | Redirected) -> list[str]:
    assert isinstance(answer, Redirected)
    return [each.worker_id for each in answer.members]


@dataclass(eq=False)
class Node:
    """A worker: a source when it has all chunks, else a target."""

    name: str
    admission: Admission
    chunks: int = 0
    alive: bool = True
    serves: bool = False
    upstream: "Node | None" = None
    readers: dict[str, "Node"] = field(default_factory=dict)
    search: Search | None = None
    question: Question | None = None
    asked: int = 0


class Play:
    """A fleet whose members move when they are told: one question, one answer at a time.

    Args:
        limit: Of every worker.
        most: Of every worker.
        seeds: Complete from the start.
    """

    def __init__(self, limit: int, most: int, seeds: int = 1) -> None:
        self.limit = limit
        self.most = most
        self.nodes: dict[str, Node] = {}
        for _ in range(seeds):
            seed = self.add()
            seed.chunks, seed.serves = CHUNKS, True

    def add(self) -> Node:
        """Return a new worker that does nothing yet."""
        node = Node(f"w{len(self.nodes)}", Admission(self.limit, self.most))
        self.nodes[node.name] = node
        return node

    def begin(self, node: Node, *avoid: str, returning: bool = False) -> None:
        """Let a target search."""
        sources = [member(n.name) for n in self.nodes.values() if n.chunks == CHUNKS and n is not node]
        node.search = search(
            [*node.admission.above[1:], *sources], asking(node.name, node.chunks, *avoid, returning=returning)
        )
        self._go_on(node, None)

    def searching(self) -> list[Node]:
        """Return the targets that have a question."""
        return [node for node in self.nodes.values() if node.alive and node.question]

    def step(self, node: Node, *, patient: bool = True) -> bool:
        """Let a target's question be answered; False: it has to wait, because the asked one has nothing to read yet."""
        assert node.question is not None
        node.admission.upstream = node.question[0].worker_id
        asked = self.nodes[node.question[0].worker_id]
        if asked.alive and not asked.serves and patient:
            return False
        node.asked += 1
        self._go_on(node, self._answer(asked, node, node.question[1]))
        return True

    def kill(self, node: Node) -> None:
        """Let a worker die: its readers search again, its own lease stays behind."""
        node.alive, node.question = False, None
        for reader in [n for n in node.readers.values() if n.alive and n.upstream is node]:
            reader.upstream = None
            self.begin(reader, node.name, returning=True)

    def receive(self, node: Node) -> None:
        """Let a target have one more chunk, if the one above it has more."""
        if node.upstream is not None and node.chunks < node.upstream.chunks:
            node.chunks += 1
            if node.chunks == CHUNKS:
                node.upstream.readers.pop(node.name)
                node.upstream = None

    def settle(self, chance: random.Random) -> None:
        """Let everyone who searches come to an end; who waits for a circle of others is let down at last."""
        while waiting := self.searching():
            chance.shuffle(waiting)
            if not any(self.step(node) for node in waiting if node.question):
                self.step(waiting[0], patient=False)

    def _go_on(self, node: Node, answer: Answer | None) -> None:
        assert node.search is not None
        try:
            node.question = next(node.search) if answer is None else node.search.send(answer)
        except StopIteration as end:
            node.question = node.search = None
            found: Member | None = end.value
            node.upstream = self.nodes[found.worker_id] if found else None
            node.serves = node.serves or found is not None

    def _answer(self, asked: Node, node: Node, question: Asking) -> Answer:
        if not (asked.alive and asked.serves):
            return Refused()
        try:
            answer = asked.admission.decide(question, [reading(n.name, n.chunks) for n in asked.readers.values()])
        except SourceBusy:
            return Refused()
        if isinstance(answer, Admitted):
            asked.readers[node.name] = node
            node.admission.above = (member(asked.name), *answer.above)
        return answer

    def check(self) -> None:
        """Nobody serves more than the most, and nobody reads from itself, over others."""
        for node in self.nodes.values():
            assert len(node.readers) <= self.most
            assert len(list(self.above(node))) < len(self.nodes), f"{node.name} reads from itself"

    def above(self, node: Node) -> Iterator[Node]:
        """Yield those that a node gets its bytes over, as many as there are nodes if they form a cycle."""
        for _ in self.nodes:
            if node.upstream is None or not node.upstream.alive:
                return
            node = node.upstream
            yield node


def anything(play: Play, chance: random.Random, targets: int, deaths: int) -> None:
    """Let targets come, ask, receive and die in any order."""
    while targets or play.searching():
        now = chance.random()
        living = [node for node in play.nodes.values() if node.alive and node.name != "w0"]
        if targets and now < 0.3:
            targets -= 1
            play.begin(play.add())
        elif deaths and living and now < 0.4:
            deaths -= 1
            play.kill(chance.choice(living))
        elif living and now < 0.7:
            play.receive(chance.choice(living))
        elif waiting := play.searching():
            play.step(chance.choice(waiting), patient=chance.random() < 0.98)
        play.check()


@settings(max_examples=300, deadline=None)
@given(
    chance=CHANCES,
    limit=st.integers(1, 3),
    seeds=st.integers(1, 3),
    targets=st.integers(1, 16),
    deaths=st.integers(0, 6),
)
def test_in_any_order_there_is_no_cycle_and_everyone_finds_a_place(
    chance: random.Random, limit: int, seeds: int, targets: int, deaths: int
) -> None:
    play = Play(limit, 64, seeds)
    anything(play, chance, targets, deaths)
    for node in play.nodes.values():
        if node.alive and node.chunks < CHUNKS:
            top = [node, *play.above(node)][-1]
            assert top.chunks == CHUNKS, f"{node.name} gets nothing"


@settings(max_examples=200, deadline=None)
@given(
    chance=CHANCES,
    limit=st.integers(1, 3),
    more=st.integers(0, 2),
    targets=st.integers(1, 16),
    deaths=st.integers(0, 6),
)
def test_a_source_never_has_more_readers_than_the_most(
    chance: random.Random, limit: int, more: int, targets: int, deaths: int
) -> None:
    anything(Play(limit, limit + more), chance, targets, deaths)


@given(chance=CHANCES, targets=st.integers(1, 60))
def test_a_limit_of_one_makes_a_chain_with_two_questions_each(chance: random.Random, targets: int) -> None:
    play = Play(1, 64)
    nodes = [play.add() for _ in range(targets)]
    for node in nodes:
        play.begin(node)
    play.settle(chance)
    assert all(len(node.readers) <= 1 for node in play.nodes.values())
    assert max(len(list(play.above(node))) for node in nodes) == targets
    assert sum(node.asked for node in nodes) == 2 * targets - 1


@given(chance=CHANCES, limit=st.integers(2, 4), targets=st.integers(1, 60))
def test_a_larger_limit_makes_a_tree_that_is_filled_from_the_top(
    chance: random.Random, limit: int, targets: int
) -> None:
    play = Play(limit, 64)
    nodes = [play.add() for _ in range(targets)]
    for node in nodes:
        play.begin(node)
    play.settle(chance)
    assert all(len(node.readers) <= limit for node in play.nodes.values())
    depth, room = 1, limit
    while room < targets:
        depth, room = depth + 1, room + limit ** (depth + 1)
    assert max(len(list(play.above(node))) for node in nodes) == depth


def test_a_chain_closes_over_its_dead_without_the_source() -> None:
    play, chance = Play(1, 64), random.Random(0)
    for _ in range(100):
        play.begin(play.add())
    play.settle(chance)
    tail = max(play.nodes.values(), key=lambda node: len(list(play.above(node))))
    chain = [*reversed(list(play.above(tail))), tail]
    for place in (40, 41, 42, 70, 100):
        play.kill(chain[place])
    play.settle(chance)
    assert list(play.above(chain[43])) == chain[39::-1]
    assert next(play.above(chain[71])) is chain[69]
    assert sum(node.asked for node in chain) <= 2 * 100 - 1 + 4


@pytest.mark.parametrize("length", [8, 40, 200])
def test_whoever_loses_its_place_in_a_long_chain_finds_another(length: int) -> None:
    play, chance = Play(1, 64), random.Random(length)
    for _ in range(length):
        play.begin(play.add())
    play.settle(chance)
    for node in list(play.nodes.values()):
        play.receive(node)
    for victim in (length // 2, length // 4, length * 3 // 4):
        play.kill(play.nodes[f"w{victim}"])
        play.settle(chance)
        play.check()
    lost = [node.name for node in play.nodes.values() if node.alive and not node.upstream and node.chunks != CHUNKS]
    assert not lost


def test_who_is_to_be_avoided_is_neither_named_nor_counted() -> None:
    source = Admission(1, 64)
    assert source.decide(asking("a"), []) == Admitted()
    assert names(source.decide(asking("b"), [reading("a")]))[0] == "a"
    assert "a" not in names(source.decide(asking("c", 0, "a"), [reading("a"), reading("d")]))
    assert source.decide(asking("e", 0, "a"), [reading("a")]) == Admitted()


def test_a_worker_is_not_fed_by_the_one_that_it_feeds() -> None:
    relay = Admission(1, 64, upstream="up")
    with pytest.raises(SourceBusy, match="feed one another"):
        relay.decide(asking("up", 5, returning=True), [])


def test_who_returns_is_sent_only_to_readers_that_are_as_far() -> None:
    source = Admission(1, 64)
    source.decide(asking("a"), [])
    source.decide(asking("waits"), [reading("a")])
    readers = [reading("a", 3), reading("b", 7), reading("behind", 1)]
    assert names(source.decide(asking("c", 3, "gone", returning=True), readers)) == ["b", "a"]
    assert source.decide(asking("c", 8, "gone", returning=True), readers) == Admitted()


def test_who_is_let_in_hears_whom_to_ask_later() -> None:
    relay = Admission(1, 64, upstream="up", above=(member("up"), member("top")))
    assert relay.decide(asking("a"), []) == Admitted((member("up"), member("top")))


def test_readers_that_serve_nobody_are_not_named() -> None:
    silent = [Reading(Member("silent"), 3), Reading(Member("other"), 3)]
    assert Admission(1, 3).decide(asking("a"), silent) == Admitted()
    with pytest.raises(SourceBusy, match="already serves 2"):
        Admission(1, 2).decide(asking("a"), silent)


def test_the_source_itself_lets_in_whom_nobody_else_could_serve() -> None:
    searching = search([member("s")], asking("a"))
    assert next(searching)[0].worker_id == "s"
    assert searching.send(Redirected((member("x"), member("y"))))[0].worker_id == "x"
    assert searching.send(Refused())[0].worker_id == "y"
    again, question = searching.send(Refused())
    assert again.worker_id == "s"
    assert question.avoid == {"x", "y"}
    with pytest.raises(StopIteration) as found:
        searching.send(Admitted())
    assert found.value.value == member("s")


def test_a_source_that_names_others_the_second_time_is_not_given_up() -> None:
    searching = search([member("s")], asking("a"))
    next(searching)
    assert searching.send(Redirected((member("x"),)))[0].worker_id == "x"
    assert searching.send(Refused())[0].worker_id == "s"
    assert searching.send(Redirected((member("y"),)))[0].worker_id == "y"
    again, question = searching.send(Refused())
    assert again.worker_id == "s"
    assert question.avoid == {"x", "y"}


def test_a_source_that_names_others_without_end_is_given_up() -> None:
    searching, questions = search([member("s")], asking("a")), 0
    next(searching)
    with suppress(StopIteration):
        for questions in range(1, 1000):
            searching.send(Redirected((member(f"x{questions}"),)))
    assert questions < MOST_QUESTIONS + MOST_AVOIDED + 2


def test_nobody_is_found_where_everyone_refuses() -> None:
    searching = search([member("s"), member("t")], asking("a"))
    assert next(searching)[0].worker_id == "s"
    assert searching.send(Refused())[0].worker_id == "t"
    with pytest.raises(StopIteration) as found:
        searching.send(Refused())
    assert found.value.value is None
