"""The pace: how long a reader waits before it asks for more."""

from modelexpress.transfer.pace import Pace


def test_without_a_limit_nobody_waits() -> None:
    pace = Pace(lambda: 0)
    pace.spend(1 << 40)
    assert pace.delay() == 0


def test_what_was_asked_for_takes_its_time() -> None:
    pace = Pace(lambda: 1000)
    assert pace.delay() == 0
    pace.spend(50_000)
    pace.spend(50_000)
    assert 99 < pace.delay() <= 100


def test_the_limit_may_end() -> None:
    rates = [100, 0]
    pace = Pace(lambda: rates[0])
    pace.spend(1000)
    del rates[0]
    assert pace.delay() == 0
