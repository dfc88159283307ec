"""The shelf: who is let in, who is sent on, and who waits for what is still to come."""

import threading
import time

import numpy as np
import pytest

from modelexpress.errors import ConfigurationError, SourceBusy, SourceGone
from modelexpress.peer import shelf as shelf_module
from modelexpress.peer.joining import Redirected
from modelexpress.peer.shelf import Shelf
from modelexpress.transfer.prefix import Prefix
from modelexpress.transport.local import LocalTransport
from modelexpress.wire.peer import LeaseGrant
from modelexpress.wire.records import Asking, Member
from tests.support.materials import make_material


def asking(name: str, *, relays: bool = True) -> Asking:
    return Asking(Member(name, f"{name}:1" if relays else ""))


def test_a_second_reader_is_sent_to_the_first() -> None:
    with LocalTransport() as transport:
        shelf, material = Shelf("seed", [transport]), make_material()
        shelf.add(material)
        source_id = material.identity.source_id
        assert isinstance(shelf.lease(source_id, asking("first"), "host"), LeaseGrant)
        assert shelf.lease(source_id, asking("second"), "host") == Redirected((Member("first", "first:1"),))
        shelf.close()


def test_readers_that_pass_nothing_on_share_the_source() -> None:
    with LocalTransport() as transport:
        shelf, material = Shelf("seed", [transport]), make_material()
        shelf.add(material)
        for number in range(3):
            granted = shelf.lease(material.identity.source_id, asking(str(number), relays=False), "host")
            assert isinstance(granted, LeaseGrant)
        shelf.close()


def test_who_asks_for_what_is_expected_waits_until_it_is_there() -> None:
    with LocalTransport() as transport:
        shelf, material = Shelf("relay", [transport]), make_material()
        prefix = Prefix(len(material.manifest.digests))
        prefix.mark(np.array([0, 1]))
        shelf.expect(material.identity.source_id)
        thread = threading.Thread(target=shelf.add, args=(material, prefix))
        thread.start()
        granted = shelf.lease(material.identity.source_id, asking("reader"), "host")
        thread.join()
        assert isinstance(granted, LeaseGrant)
        assert granted.verified_chunks == 2
        shelf.close()


def test_two_that_ask_one_another_do_not_wait_for_each_other() -> None:
    shelf = Shelf("relay", [])
    shelf.expect("source")
    asked = threading.Timer(0.05, shelf.asks, ("source", Member("reader", "reader:1")))
    asked.start()
    started = time.monotonic()
    with pytest.raises(SourceBusy):
        shelf.lease("source", asking("reader"), "host")
    assert time.monotonic() - started < shelf_module.JOINING_SECONDS / 2
    asked.join()


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "JOINING_SECONDS", 0.01)
    shelf = Shelf("relay", [])
    shelf.expect("source")
    with pytest.raises(SourceBusy, match="not begun"):
        shelf.lease("source", asking("reader"), "host")
    shelf.remove("source")
    with pytest.raises(SourceGone):
        shelf.lease("source", asking("reader"), "host")


def test_a_worker_does_not_let_in_whom_it_reads_from() -> None:
    with LocalTransport() as transport:
        shelf, material = Shelf("relay", [transport]), make_material()
        shelf.expect(material.identity.source_id)
        shelf.asks(material.identity.source_id, Member("upstream", "upstream:1"))
        shelf.add(material, Prefix(len(material.manifest.digests)))
        with pytest.raises(SourceBusy, match="feed one another"):
            shelf.lease(material.identity.source_id, asking("upstream"), "host")
        shelf.close()


def test_readers_that_know_of_no_prefix_wait_for_everything() -> None:
    with LocalTransport() as transport:
        shelf, material = Shelf("relay", [transport]), make_material()
        prefix = Prefix(len(material.manifest.digests))
        shelf.add(material, prefix)
        with pytest.raises(SourceBusy, match="still receiving"):
            shelf.lease_anyway(material.identity.source_id, "an old reader")
        prefix.reach(prefix.chunks)
        assert shelf.lease_anyway(material.identity.source_id, "an old reader")
        shelf.close()


def test_what_is_offered_cannot_be_expected() -> None:
    with LocalTransport() as transport:
        shelf, material = Shelf("seed", [transport]), make_material()
        shelf.add(material)
        with pytest.raises(ConfigurationError):
            shelf.expect(material.identity.source_id)
        shelf.close()


def test_readers_share_the_uplink() -> None:
    with LocalTransport() as transport:
        shelf, material = Shelf("seed", [transport], reader_limit=4, uplink=1000), make_material()
        shelf.add(material)
        rates = []
        for name in ("first", "second"):
            granted = shelf.lease(material.identity.source_id, asking(name), "host")
            assert isinstance(granted, LeaseGrant)
            rates.append(granted.bytes_per_second)
        assert rates == [1000, 500]
        assert shelf.share() == 500
        shelf.close()
