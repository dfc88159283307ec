"""The table of leases, as its own unit: who is in, who is out, and who is told."""

import threading

import pytest

from modelexpress.errors import LeaseExpired, SourceBusy
from modelexpress.peer.leases import Lease, LeaseTable
from modelexpress.wire.records import Member
from tests.support.waiting import wait_until


class Book:
    """A table, and the leases that it said have ended."""

    def __init__(self, ttl: float = 30.0, most: int = 3) -> None:
        self.ended: list[str] = []
        self.table = LeaseTable(ttl, most, lambda lease: self.ended.append(lease.reader.worker_id))

    def grant(self, reader: str, source_id: str = "s") -> Lease:
        lease = Lease(source_id, Member(reader), "host", 100)
        self.table.grant(lease)
        return lease


def test_lease_ids_cannot_be_guessed() -> None:
    ids = {Lease("s", Member("r"), "h", 0).lease_id for _ in range(100)}
    assert len(ids) == 100
    assert {len(lease_id) for lease_id in ids} == {32}


def test_every_end_is_told_once() -> None:
    book = Book()
    first, second, third = book.grant("1"), book.grant("2", "other"), book.grant("3")
    book.table.release(third.lease_id)
    book.table.release(third.lease_id)
    book.table.release("unknown")
    book.table.release_all("s")
    assert book.ended == ["3", "1"]
    assert len(book.table) == 1
    assert book.table.get(second.lease_id) is second
    with pytest.raises(LeaseExpired):
        book.table.get(first.lease_id)


def test_whoever_is_told_may_use_the_table() -> None:
    table = LeaseTable(30.0, 3, lambda lease: table.release_all(lease.source_id))
    leases = [Lease("s", Member(str(i)), "h", 0) for i in range(3)]
    for lease in leases:
        table.grant(lease)
    table.release(leases[0].lease_id)
    assert len(table) == 0


def test_a_silent_lease_makes_room_and_a_renewed_one_does_not() -> None:
    book = Book(ttl=0.2, most=2)
    silent, renewed = book.grant("silent"), book.grant("renewed")
    with pytest.raises(SourceBusy):
        book.grant("too many")

    def silent_is_gone() -> bool:
        book.table.get(renewed.lease_id)
        return book.ended == ["silent"]

    wait_until(silent_is_gone, 5)
    book.grant("next")
    assert [reader.reader_id for reader in book.table.readers()] == ["renewed", "next"]
    with pytest.raises(LeaseExpired):
        book.table.get(silent.lease_id)


def test_readers_that_fell_silent_are_not_listed() -> None:
    book = Book(ttl=0.05)
    book.grant("silent")
    wait_until(lambda: book.table.readers() == [], 5)
    assert book.ended == ["silent"]


def test_one_answer_is_streamed_at_a_time() -> None:
    book = Book()
    lease = book.grant("r")
    first = book.table.streaming(lease.lease_id, lambda: None)
    with first, pytest.raises(SourceBusy), book.table.streaming(lease.lease_id, lambda: None):
        pass
    with book.table.streaming(lease.lease_id, lambda: None) as held:
        assert held is lease


def test_a_stream_is_cancelled_when_its_lease_ends() -> None:
    book = Book()
    lease = book.grant("r")
    cancelled = threading.Event()
    with book.table.streaming(lease.lease_id, cancelled.set):
        book.table.release_all("s")
        assert cancelled.is_set()
    cancelled.clear()
    lease = book.grant("r")
    with book.table.streaming(lease.lease_id, cancelled.set):
        pass
    book.table.release(lease.lease_id)
    assert not cancelled.is_set(), "a stream that is through is not cancelled"
