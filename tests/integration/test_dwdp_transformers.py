"""Models of transformers, unmodified, compute with shared experts what they compute with all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dwdp_nursery import Nursery

LAYERS = {
    "qwen3_moe": [1, 3, 5],
    "mixtral": [0, 1, 2],
    "deepseek_v3": [1, 2, 3, 4],
    "gpt_oss": [0, 1, 2, 3],
}


@pytest.mark.parametrize(("config", "loaded"), [((2, 4, 4), "all"), ((3, 4, 2), "part")])
@pytest.mark.parametrize("name", LAYERS)
def test_logits_and_generated_tokens(
    nursery: Nursery, tmp_path: Path, name: str, config: tuple[int, ...], loaded: str
) -> None:
    found = nursery.run(tmp_path, "dwdp_transformers:share", config[0], name=name, config=config, loaded=loaded)
    assert found == [[f"model.layers.{layer}.mlp" for layer in LAYERS[name]]] * config[0]


def test_with_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.support.dwdp_transformers"],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["model.layers.1.mlp model.layers.3.mlp model.layers.5.mlp"] * 2
