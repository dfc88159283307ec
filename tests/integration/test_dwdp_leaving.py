"""A block that is left while copies or computation are under way waits for them, and gives everything back."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("work", ["copies", "computes"])
@pytest.mark.parametrize("kind", ["host", "double", "strict"])
def test_what_other_streams_do_with_experts_is_waited_for(
    nursery: Nursery, tmp_path: Path, kind: str, work: str, raises: bool
) -> None:
    nursery.run(tmp_path, "dwdp_leaving:foreign", 2, kind=kind, work=work, raises=raises)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("error", "loaded"), [("refused", "part"), ("refused", "all"), ("interrupted", "all")])
@pytest.mark.parametrize("point", ["begin", "middle", "end"])
def test_an_exception_while_a_prefetch_is_under_way(
    nursery: Nursery, tmp_path: Path, point: str, error: str, loaded: str, alone: bool
) -> None:
    nursery.run(tmp_path, "dwdp_leaving:broken", 3, point=point, error=error, loaded=loaded, alone=alone)
