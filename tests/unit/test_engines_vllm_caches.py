"""Where vLLM's caches are; vLLM itself is a stand-in with the two names that are looked at there."""

import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from modelexpress.artifacts.kinds.torch_compile import TorchCompile


class Mode(IntEnum):
    DYNAMO_TRACE_ONCE = 2
    VLLM_COMPILE = 3


@pytest.fixture
def envs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the stand-in says of vLLM's variables."""
    stand_in: Any = ModuleType("vllm")
    stand_in.envs = SimpleNamespace(VLLM_CACHE_ROOT="/caches/vllm", VLLM_USE_AOT_COMPILE=False)
    config: Any = ModuleType("vllm.config")
    config.CompilationMode = Mode
    for name, module in {"vllm": stand_in, "vllm.envs": stand_in.envs, "vllm.config": config}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return stand_in.envs


@pytest.mark.parametrize(
    ("ahead_of_time", "mode", "chosen", "folder"),
    [
        (True, Mode.DYNAMO_TRACE_ONCE, "", "/caches/vllm/torch_compile_cache"),
        (True, Mode.VLLM_COMPILE, "/chosen", "/caches/vllm/torch_compile_cache"),
        (False, Mode.VLLM_COMPILE, "", "/caches/vllm/torch_compile_cache"),
        (False, Mode.VLLM_COMPILE, "/chosen", "/chosen"),
        (False, Mode.DYNAMO_TRACE_ONCE, "", "/tmp/torchinductor_root"),
    ],
)
def test_the_folder_is_the_one_that_vllm_writes_to(
    envs: Any, ahead_of_time: bool, mode: Mode, chosen: str, folder: str
) -> None:
    from modelexpress.engines.vllm.caches import cache_variables

    envs.VLLM_USE_AOT_COMPILE = ahead_of_time
    config = SimpleNamespace(compilation_config=SimpleNamespace(mode=mode, cache_dir=chosen))
    # As torch leaves it behind when it is imported.
    found = cache_variables(config, {"TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor_root"})
    assert TorchCompile().root(found) == Path(folder)
