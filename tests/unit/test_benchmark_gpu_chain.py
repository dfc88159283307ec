"""What the benchmark of chains says of a target whose source killed itself, and that this is no failure of its own."""

import pytest

from benchmarks.gpu_chain import after_death
from benchmarks.gpu_models import role


def test_what_was_verified_kept_and_fetched_again_is_told() -> None:
    answer = {"nbytes": 200, "kept_bytes": 60, "seconds_to_ready": 0.5, "verified": [[1.0, 40], [2.0, 80], [3.0, 120]]}
    figures = {figure.name: figure.value for figure in after_death("it", answer, died=2.5, alone=0.25)}
    assert figures == {
        "it is ready": 500,
        "it had verified at that instant": 40,
        "it had and kept": 30,
        "it fetched again of what it had verified": 10,
    }


def test_a_process_that_is_to_die_may() -> None:
    with role("json.tool", "one that json.tool does not know", "", []) as dying:
        dying.wait(30)
    with pytest.raises(AssertionError, match="ended with status 2"), role("json.tool", "another", "", []):
        pass
