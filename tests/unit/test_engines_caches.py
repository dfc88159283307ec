"""Caches are brought for models whose weights cannot be shared, too; engines are stand-ins with what is asked there."""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from modelexpress.artifacts.bringing import BroughtCaches
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.engines import caches, process_worker
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker

Load = Callable[[], torch.nn.Module]


@dataclass
class LoadConfig:
    """What vLLM's loaders are told."""

    load_format: str = "modelexpress"
    model_loader_extra_config: dict[str, object] = field(default_factory=dict)


class NativeLoader:
    """An engine's own loader: what it has filled is all ones."""

    def __init__(self, *args: object) -> None:
        """Take whatever the engine's takes."""

    def load_model(self, *, vllm_config: Any, model_config: Any, prefix: str = "") -> torch.nn.Module:
        """Make a model and fill it, as vLLM does."""
        model = torch.nn.Linear(2, 2)
        self.fill(model)
        return model

    def fill(self, model: torch.nn.Module) -> None:
        """Fill a model, as SGLang does."""
        for parameter in model.parameters():
            torch.nn.init.ones_(parameter)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    """Put a module that has only this where the adapter imports it, and the packages above it."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        path = ".".join(parts[:length])
        if path not in sys.modules:
            monkeypatch.setitem(sys.modules, path, ModuleType(path))
    for key, value in contents.items():
        monkeypatch.setattr(sys.modules[name], key, value, raising=False)


@pytest.fixture(autouse=True)
def environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Iterator[dict[object, Worker]]:
    """A process that has loaded nothing yet, with a registry that does not answer; its worker ends with the test."""
    caplog.set_level(logging.INFO)
    variables = {"MX_ARTIFACT_TRANSFER": "1", "MX_WORKER_GRPC_PORT": "0", "MX_SOURCE_QUERY_TIMEOUT": "0.5"}
    for name, value in {**variables, "MX_SERVER_ADDRESS": "127.0.0.1:9", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    for name in ("MODEL_EXPRESS_URL", "MX_P2P_METADATA", "MX_ARTIFACT_READY_URL", "TRITON_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    made: dict[object, Worker] = {}
    monkeypatch.setattr(process_worker, "_workers", made)
    monkeypatch.setattr(caches, "_begun", set[int]())
    monkeypatch.setattr(caches, "KINDS", [Triton()])
    yield made
    for worker in made.values():
        worker.close()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load with vLLM's adapter a model in sleep mode, as the second rank of the second host."""
    loaders = "vllm.model_executor.model_loader"
    stand_in(monkeypatch, f"{loaders}.base_loader", BaseModelLoader=NativeLoader)
    stand_in(monkeypatch, f"{loaders}.default_loader", DefaultModelLoader=NativeLoader)
    stand_in(monkeypatch, "vllm.config", CompilationMode=SimpleNamespace(VLLM_COMPILE=3))
    stand_in(monkeypatch, "vllm", envs=SimpleNamespace(VLLM_CACHE_ROOT="/nowhere", VLLM_USE_AOT_COMPILE=True))
    world = SimpleNamespace(world_size=4, rank_in_group=3, local_rank=1)
    stand_in(
        monkeypatch,
        "vllm.distributed.parallel_state",
        get_world_group=lambda: world,
        get_node_count=lambda: 2,
    )
    monkeypatch.delitem(sys.modules, "modelexpress.engines.vllm.loader", raising=False)
    loader = importlib.import_module("modelexpress.engines.vllm.loader")
    monkeypatch.delitem(sys.modules, "modelexpress.engines.vllm.loader")
    monkeypatch.setattr(loader, "layout_here", lambda: None)
    monkeypatch.setattr(loader, "identity_of", lambda *_: SourceIdentity(model_name="m"))
    parallel = {"enable_eplb": False, "data_parallel_size": 1, "data_parallel_index": 0}
    config = SimpleNamespace(
        cache_config=SimpleNamespace(),
        model_config=SimpleNamespace(enable_sleep_mode=True),
        parallel_config=SimpleNamespace(**parallel, data_parallel_rank_local=None),
        compilation_config=SimpleNamespace(mode=3, cache_dir=""),
        compute_hash=lambda: "hash",
    )
    made: NativeLoader = loader.MxModelLoader(LoadConfig())
    return lambda: made.load_model(vllm_config=config, model_config=config.model_config)


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load with SGLang's adapter a model whose memory may be given away, as the first rank of a host."""
    from modelexpress.engines.sglang import loader

    options = {"enable_memory_saver": True}
    sizes = SimpleNamespace(tp_size=2, tp_rank=0, pp_size=1, pp_rank=0, nnodes=1, attn_dp_size=1, dp_rank=None)
    stand_in(
        monkeypatch,
        "sglang.srt.runtime_context",
        get_context=lambda: SimpleNamespace(resolved_server_args_dict=lambda: options),
        get_parallel=lambda: sizes,
    )
    folder = SimpleNamespace(get=lambda: "/nowhere")
    stand_in(monkeypatch, "sglang.srt.environ", envs=SimpleNamespace(SGLANG_DG_CACHE_DIR=folder))
    monkeypatch.setattr(loader, "NativeLoader", NativeLoader)
    monkeypatch.setattr(loader, "identity_of", lambda *_: SourceIdentity(model_name="m"))
    made = loader.MxModelLoader(SimpleNamespace(modelexpress_url=None, modelexpress_transport="nixl"))
    # With --base-gpu-id 2 the first rank of a host has this device.
    device = SimpleNamespace(gpu_id=2, device="cpu")
    return lambda: made.load_model(model=torch.nn.Linear(2, 2), model_config=None, device_config=device)


@pytest.mark.parametrize(("engine", "shares"), [("vllm", False), ("sglang", True)])
def test_caches_are_brought_though_the_weights_cannot_be_shared(
    engine: str,
    shares: bool,
    environment: dict[object, Worker],
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = request.getfixturevalue(engine)()
    assert all(parameter.eq(1).all() for parameter in model.parameters())
    assert "loading natively, and not becoming a source of weights" in caplog.text
    assert "no caches of compiled kernels can be looked for" in caplog.text
    assert bool(environment) is shares
    assert ("nothing tells when the engine is ready" in caplog.text) is shares


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_without_peer_metadata_engines_say_so_and_go_on(
    engine: str,
    environment: dict[object, Worker],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MX_P2P_METADATA", "0")
    model = request.getfixturevalue(engine)()
    assert all(parameter.eq(1).all() for parameter in model.parameters())
    assert "caches of compiled kernels are not transferred: MX_P2P_METADATA=0" in caplog.text
    assert not environment


def test_a_worker_is_described_with_its_host(vllm: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def bring(*args: object, **options: Any) -> BroughtCaches:
        asked.append(options)
        return BroughtCaches((), {})

    monkeypatch.setattr(caches, "bring", bring)
    vllm()
    assert [options["node_rank"] for options in asked] == [1]
