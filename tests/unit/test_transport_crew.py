"""Work is cut into parts that cover every byte once, and comes in the order in which it was asked for."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import PeerLost, RegionWithdrawn, TransferTimeout, TransportError
from modelexpress.transport import Run
from modelexpress.transport.crew import PART_BYTES, PART_RUNS, Crew, Part, out_of_range

SIZES = [PART_BYTES * 4, 100]


def idle() -> None:
    """A worker that leaves the work to the test."""


def taken(crew: Crew) -> list[Part]:
    parts = []
    while (part := crew.take(block=False)) is not None:
        parts.append(part)
    return parts


def runs() -> st.SearchStrategy[Run]:
    sizes = st.one_of(st.integers(0, 300), st.integers(0, 3 * PART_BYTES))
    return st.builds(Run, st.just(0), st.integers(0, PART_BYTES), st.integers(0, 1 << 40), sizes)


@given(st.lists(runs(), max_size=40))
def test_parts_cover_the_runs_in_order(asked: list[Run]) -> None:
    crew = Crew("test", SIZES, [idle])
    transfer = crew.submit(asked)
    parts = taken(crew)
    pieces = [piece for part in parts for piece in part.runs]
    for run in asked:
        left = run.nbytes
        while left:
            piece = pieces.pop(0)
            done = run.nbytes - left
            assert (piece.region, piece.offset, piece.address) == (0, run.offset + done, run.address + done)
            left -= piece.nbytes
    assert not pieces
    assert all(part.nbytes == sum(run.nbytes for run in part.runs) for part in parts)
    assert all(0 < part.nbytes <= PART_BYTES and len(part.runs) <= PART_RUNS for part in parts)
    assert transfer.done() == (not parts)


def test_small_runs_share_parts() -> None:
    crew = Crew("test", SIZES, [idle])
    crew.submit([Run(0, 0, 0, 10)] * (3 * PART_RUNS))
    assert len(taken(crew)) == 3


def test_a_transfer_is_done_when_its_last_part_has_landed() -> None:
    crew = Crew("test", SIZES, [idle])
    transfer = crew.submit([Run(0, 0, 0, 2 * PART_BYTES)])
    first, second = taken(crew)
    crew.land(first)
    assert (transfer.progress, transfer.done()) == (PART_BYTES, False)
    with pytest.raises(TransferTimeout, match=f"{PART_BYTES} of {2 * PART_BYTES} bytes"):
        transfer.wait(0.001)
    crew.land(second)
    transfer.wait()
    assert transfer.progress == 2 * PART_BYTES


def test_a_refused_part_fails_its_transfer_alone() -> None:
    crew = Crew("test", SIZES, [idle])
    bad, good = crew.submit([Run(0, 0, 0, 2 * PART_BYTES)]), crew.submit([Run(1, 0, 0, 100)])
    part = crew.take(block=False)
    assert part is not None
    crew.refuse(part, RegionWithdrawn("gone"))
    with pytest.raises(RegionWithdrawn, match="gone"):
        bad.wait()
    (rest,) = taken(crew)
    assert rest.transfer is good, "what is left of a failed transfer is not wanted"


def test_a_failed_crew_fails_everything_with_the_first_error() -> None:
    crew = Crew("test", SIZES, [idle])
    before = crew.submit([Run(0, 0, 0, 10)])
    crew.fail(PeerLost("first"))
    crew.fail(RegionWithdrawn("second"))
    for transfer in (before, crew.submit([Run(0, 0, 0, 10)])):
        with pytest.raises(PeerLost, match="first"):
            transfer.wait()
    assert crew.take(block=True) is None


def test_each_waiting_thread_gets_an_error_of_its_own() -> None:
    crew = Crew("test", SIZES, [idle])
    transfer = crew.submit([Run(0, 0, 0, 10)])
    errors: list[TransportError] = []

    def wait() -> None:
        with pytest.raises(PeerLost) as caught:
            transfer.wait()
        errors.append(caught.value)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    crew.fail(PeerLost("gone"))
    for thread in threads:
        thread.join()
    assert len({id(error) for error in errors}) == 3


@given(st.integers(-3, 3), st.integers(-200, 200), st.integers(-200, 200))
def test_a_run_is_out_of_range_when_any_of_its_bytes_is(region: int, offset: int, nbytes: int) -> None:
    sizes = [100, 0]
    within = 0 <= region < 2 and offset >= 0 and nbytes >= 0 and offset + nbytes <= sizes[region]
    assert (out_of_range([Run(0, 0, 0, 1), Run(region, offset, 0, nbytes)], sizes) is None) == within
