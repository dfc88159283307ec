"""One rank of a replica of the engine's double, as a process of its own."""

import argparse
import json
import os
import sys
from typing import Any

from tests.support import trtllm_engine_double as engine
from tests.support.children import Child, say


class RankProcess(Child):
    """A rank that loads, says how and what it computes, and goes on until the block ends.

    Args:
        way: "presharded", "live" or "delegated".
        registry: HOST:PORT.
        model: Its name.
        folder: Of the checkpoint.
        rank: Of it.
        size: Tensor parallel size.
        device: Where the model is.
        environment: Variables beside those of this process.
    """

    def __init__(
        self,
        way: str,
        registry: str,
        model: str,
        folder: object,
        rank: int = 0,
        size: int = 1,
        device: str = "cpu",
        **environment: str,
    ) -> None:
        super().__init__(
            "tests.support.trtllm_rank",
            *(way, model, str(folder), str(rank), str(size), device),
            environment={"MODEL_EXPRESS_URL": f"http://{registry}", "MODEL_NAME": model}
            | {"MX_SOURCE_QUERY_TIMEOUT": "0", "OMP_NUM_THREADS": "1", "MX_WORKER_GRPC_PORT": "0"}
            | environment,
        )

    def loaded(self) -> dict[str, Any]:
        """Return what the rank says once it has loaded."""
        found: dict[str, Any] = self.answer()
        return found


def main() -> None:
    """Load, say so, and do what standard input asks until it ends."""
    parser = argparse.ArgumentParser()
    for name in ("way", "model", "folder", "rank", "size", "device"):
        parser.add_argument(name)
    given = parser.parse_args()
    mapping = engine.Mapping(int(given.rank), int(given.size))
    engine.install(mapping)
    model = engine.Model(mapping).to(given.device)
    loader = _load(given.way, given.model, given.folder, model, mapping)
    _wait_published()
    say(json.dumps(_facts(model, loader)))
    for line in sys.stdin:
        match line.strip():
            case "cleanup":
                loader.cleanup()
            case "worker":
                from modelexpress.trtllm_live_transfer import publish_from_worker

                publish_from_worker(_worker_of(model))
        say(json.dumps(_facts(model, loader)))


def _load(way: str, name: str, folder: str, model: engine.Model, mapping: engine.Mapping) -> Any:
    url = os.environ["MODEL_EXPRESS_URL"]
    if way == "presharded":
        from modelexpress.trtllm_live_transfer import MxLiveCheckpointLoader

        presharded = MxLiveCheckpointLoader(mx_server=url)
        engine.load_presharded(model, presharded, folder, mapping)
        return presharded
    if way == "live":
        live = engine.LiveMxCheckpointLoader(url, name)
        engine.load_live(model, live, folder, mapping)
        return live
    delegating = engine.DelegatingMxCheckpointLoader(url)
    identity = engine.SourceIdentity(f"/models/{name}", mapping.rank, mapping.tp_size)
    engine.load_delegated(model, delegating, folder, identity)
    return delegating


def _worker_of(model: engine.Model) -> Any:
    """Return the engine's worker, as hooks get it once the engine is up."""
    from types import SimpleNamespace

    return SimpleNamespace(engine=SimpleNamespace(model_engine=SimpleNamespace(model=model)))


def _publications() -> list[Any]:
    from modelexpress.engines.process_worker import _workers

    return [publication for worker in _workers.values() for publication in worker.publications]


def _wait_published() -> None:
    for publication in _publications():
        assert publication.wait_ready(20)


def _facts(model: engine.Model, loader: Any) -> dict[str, Any]:
    attention: Any = model.layers[0].get_submodule("attn")
    preloaded = loader.is_weights_preloaded() if hasattr(loader, "is_weights_preloaded") else loader.preloaded
    return {
        "output": engine.output_of(model),
        "preloaded": preloaded,
        "reads": engine.HfWeightLoader.reads,
        "steps": attention.steps,
        "presharded": getattr(attention, "_weights_presharded", None),
        "offers": [f"{publication.source_id} {publication.state.value}" for publication in _publications()],
        "probed": getattr(loader, "probed", None),
    }


if __name__ == "__main__":
    main()
