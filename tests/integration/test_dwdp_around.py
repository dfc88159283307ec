"""What a program does around the block in which experts are shared makes no difference."""

from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery


@pytest.mark.parametrize("case", ["inference", "compiled", "forked", "default_device"])
def test_the_program_around_the_block_does_as_it_likes(nursery: Nursery, tmp_path: Path, case: str) -> None:
    nursery.run(tmp_path, f"dwdp_around:{case}", 2)
