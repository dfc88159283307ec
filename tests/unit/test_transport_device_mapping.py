"""Regions are mapped in order, whoever wants one waits for it, and every error reaches who waits."""

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from modelexpress.errors import DeviceError, PeerLost, TransportError, TransportUnavailable
from modelexpress.memory.host_vmm import HostVmm
from modelexpress.memory.side_by_side import SideBySide
from modelexpress.transport.device_mapping import MANY_REGIONS, DeviceMapping
from tests.support.driver_double import DriverDouble
from tests.support.waiting import wait_until

VMM = HostVmm()
PAGE = VMM.granularity
WAIT = 20.0


class Slow(SideBySide):
    """A region that is mapped page by page, each when `may` says so."""

    def __init__(self, pages: int, may: Callable[[], None]) -> None:
        super().__init__(VMM, [(VMM.create(PAGE), PAGE) for _ in range(pages)])
        self._may = may

    def advance(self) -> None:
        self._may()
        super().advance()


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[DriverDouble]:
    double = DriverDouble()
    monkeypatch.setattr("modelexpress.transport.device_mapping.driver", lambda: double)
    monkeypatch.setattr("modelexpress.memory.side_by_side.GROUP_BYTES", PAGE)
    before = len(os.listdir("/proc/self/fd"))
    yield double
    assert len(os.listdir("/proc/self/fd")) == before


def at_once() -> None:
    """Let a region be mapped."""


def refuse() -> None:
    raise DeviceError("refused")


def test_everything_is_mapped_in_the_end() -> None:
    mapping = DeviceMapping({number: Slow(3, at_once) for number in (2, 5, 9, 11, 30, 31)}, 0)
    mapping.start()
    for number in (31, 2, 9):
        assert mapping.address(number, 3 * PAGE) > 0
    wait_until(lambda: mapping.seconds is not None)
    assert mapping.largest() is not None
    mapping.close()
    mapping.close()


def test_the_beginning_of_a_region_is_read_before_its_end_is_mapped() -> None:
    pages = threading.Semaphore(2)

    def when_told() -> None:
        assert pages.acquire(timeout=WAIT)

    mapping = DeviceMapping({0: Slow(4, when_told)}, 0)
    mapping.map_first()
    assert mapping.covers(0, PAGE)
    mapping.start()
    mapping.address(0, 2 * PAGE)
    assert not mapping.covers(0, 3 * PAGE)
    pages.release(2)
    mapping.address(0, 4 * PAGE)
    mapping.close()


def test_an_error_of_the_first_region_is_told_at_once() -> None:
    mapping = DeviceMapping({3: Slow(1, refuse), 4: Slow(1, at_once)}, 0)
    with pytest.raises(DeviceError, match="refused"):
        mapping.map_first()
    mapping.close()


def test_a_later_error_reaches_who_waits_and_who_asks_afterwards() -> None:
    mapping = DeviceMapping({0: Slow(1, at_once), 1: Slow(1, refuse)}, 0)
    mapping.map_first()
    mapping.start()
    for _ in range(2):
        with pytest.raises(TransportUnavailable, match="device 0 cannot map the source's memory: refused"):
            mapping.address(1, PAGE)
    assert mapping.address(0, PAGE) > 0, "what is mapped can be read"
    mapping.close()


def test_stopping_ends_the_waiting() -> None:
    go_on = threading.Event()

    def when_told() -> None:
        assert go_on.wait(WAIT)

    mapping = DeviceMapping({0: Slow(9, when_told), 1: Slow(9, when_told)}, 0)
    mapping.start()
    errors: list[TransportError] = []

    def wait() -> None:
        with pytest.raises(PeerLost) as caught:
            mapping.address(1, 9 * PAGE)
        errors.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    mapping.stop()
    thread.join(WAIT)
    go_on.set()
    mapping.close()
    assert len(errors) == 1
    assert not mapping.covers(1, 9 * PAGE), "nothing more was mapped"


def test_nothing_to_map_needs_no_thread() -> None:
    mapping = DeviceMapping({}, 0)
    mapping.map_first()
    mapping.start()
    assert mapping.seconds is not None
    assert mapping.largest() is None
    mapping.close()


def test_an_arena_is_advised_where_there_are_many_regions() -> None:
    few = DeviceMapping({number: Slow(1, at_once) for number in range(3)}, 0)
    assert not few.advice()
    few.close()
    many = DeviceMapping({number: Slow(1, at_once) for number in range(MANY_REGIONS)}, 0)
    assert f"{MANY_REGIONS} allocations" in many.advice()
    assert "CudaArena" in many.advice()
    many.close()


def test_a_region_that_cannot_be_unmapped_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Slow):
        def close(self) -> None:
            super().close()
            raise DeviceError("stuck")

    regions = {0: Stuck(1, at_once), 1: Slow(1, at_once)}
    mapping = DeviceMapping(regions, 0)
    mapping.start()
    mapping.address(1, PAGE)
    mapping.close()
    assert "stuck" in caplog.text
    assert regions[1].address == 0
