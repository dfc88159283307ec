"""The prefix: what is there without a gap, and what those who wait are told."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import PeerLost, TransferTimeout
from modelexpress.transfer.prefix import Prefix


@given(st.permutations(range(20)), st.integers(1, 7))
def test_it_counts_the_chunks_before_the_first_gap(order: list[int], together: int) -> None:
    prefix, there = Prefix(20), set[int]()
    for start in range(0, 20, together):
        numbers = order[start : start + together]
        prefix.mark(np.array(numbers))
        there.update(numbers)
        assert prefix.value == next((n for n in range(20) if n not in there), 20)
    assert prefix.complete


def test_a_twin_is_there_with_the_chunk_that_it_shares_memory_with() -> None:
    prefix = Prefix(4, twins=np.array([[0, 3]]))
    prefix.mark(np.array([1, 2]))
    assert prefix.value == 0
    prefix.mark(np.array([3]))
    assert prefix.complete


def test_a_complete_one_makes_nobody_wait() -> None:
    prefix = Prefix(3, complete=True)
    prefix.end("ignored")
    prefix.wait_for(3, silence=0, timeout=0)
    assert prefix.value == 3


def test_it_never_shrinks_and_never_exceeds_the_manifest() -> None:
    prefix = Prefix(5)
    prefix.reach(3)
    prefix.reach(1)
    assert prefix.value == 3
    prefix.reach(99)
    assert prefix.value == 5


def test_who_waits_goes_on_when_it_grows() -> None:
    prefix = Prefix(10)

    def grow() -> None:
        for value in range(1, 11):
            prefix.reach(value)

    thread = threading.Thread(target=grow)
    thread.start()
    prefix.wait_for(10, silence=10, timeout=10)
    thread.join()
    assert prefix.complete


def test_who_waits_learns_that_nothing_more_comes() -> None:
    prefix = Prefix(10)
    prefix.reach(4)
    prefix.wait_for(4, silence=0, timeout=0)
    prefix.end("worker a is gone")
    with pytest.raises(PeerLost, match="worker a is gone"):
        prefix.wait_for(5, silence=10, timeout=10)


def test_a_source_that_stands_still_is_given_up() -> None:
    with pytest.raises(TransferTimeout, match="MX_STALL_TIMEOUT"):
        Prefix(1).wait_for(1, silence=0.01, timeout=10)
    with pytest.raises(TransferTimeout, match="MX_TRANSFER_TIMEOUT"):
        Prefix(1).wait_for(1, silence=10, timeout=0.01)


def test_a_source_that_is_heard_of_is_waited_for() -> None:
    prefix, heard = Prefix(1), threading.Event()

    def go_on() -> None:
        while not heard.wait(0.01):
            prefix.hear(0)
        prefix.hear(1)

    thread = threading.Thread(target=go_on)
    timer = threading.Timer(1.5, heard.set)
    thread.start()
    timer.start()
    prefix.wait_for(1, silence=1, timeout=30)
    thread.join()
    assert prefix.complete
