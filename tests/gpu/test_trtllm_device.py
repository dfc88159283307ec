"""TensorRT-LLM's weights in device memory: live and delegated, each rank a process; the engine is a double."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support import trtllm_engine_double as engine
from tests.support.trtllm_rank import RankProcess

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("way", ["presharded", "live", "delegated"])
def test_ranks_take_their_shards_on_a_device(way: str, registry: str, tmp_path: Path) -> None:
    whole, other = engine.checkpoint(tmp_path / "whole"), engine.checkpoint(tmp_path / "other", seed=7)
    named = partial(RankProcess, way, registry, f"device/{way}", MX_MODEL_REVISION="r1")
    with ExitStack() as stack:
        first = [stack.enter_context(named(whole, rank, 2, "cuda")) for rank in range(2)]
        given = [rank.loaded() for rank in first]
        second = [stack.enter_context(named(other, rank, 2, "cuda")) for rank in range(2)]
        taken = [rank.loaded() for rank in second]
        if way != "delegated":
            first[0].tell("worker")  # looks whether what is offered is as it was
            assert first[0].loaded()["offers"] == given[0]["offers"]
    for source, target in zip(given, taken, strict=True):
        assert (source["preloaded"], target["preloaded"]) == (False, True)
        assert target["output"] == source["output"]
        assert target["offers"] == source["offers"]
