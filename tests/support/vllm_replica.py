"""A replica of vLLM in a process of its own, in the environment that scripts/engines.py makes, without a server."""

import argparse
import copy
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.children import Child

_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",  # models run eagerly, and no process has to compile helpers of vLLM
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0|1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmReplica(Child):
    """Starts the process and waits until it has generated something.

    Args:
        python: Of the environment.
        model: A checkpoint folder.
        log: Where what vLLM says goes.
        registry: HOST:PORT.
        options: Of `LLM`.
        layout: Which layout weights are shared in, instead of that of the platform: "processed" switches packing off.
        by_hand: Whether it shall try to fill a model by hand; of one process only.
        variables: Of the environment.
    """

    def __init__(
        self,
        python: Path,
        model: Path,
        log: Path,
        registry: str,
        *,
        options: Mapping[str, Any],
        layout: str = "",
        by_hand: bool = False,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        cache_root = log.with_suffix(".cache")
        share_what_vllm_knows(python, cache_root)
        given = {"model": str(model), "options": dict(options), "layout": layout, "by_hand": by_hand}
        environment = {**_VARIABLES, "VLLM_CACHE_ROOT": str(cache_root), "MX_SERVER_ADDRESS": registry}
        with log.open("wb") as file:
            super().__init__(
                "tests.support.vllm_replica",
                json.dumps(given),
                environment=environment | dict(variables or {}),
                python=str(python),
                log=file,
            )
        answer = self.answer()
        self.tokens: list[int] = answer["tokens"]
        self.fills_by_hand: bool = answer["fills_by_hand"]

    @property
    def messages(self) -> str:
        """What vLLM has logged so far."""
        return self.log.read_text()


def share_what_vllm_knows(python: Path, cache_root: Path) -> None:
    """Let a new VLLM_CACHE_ROOT have what vLLM knows of classes of models, which it keeps in a folder `modelinfos`.

    Where it is missing, a start imports all of vLLM in one more process, which only looks at the class. It stays in the
    environment, and holds nothing of any model's weights or kernels.
    """
    known = python.parents[1] / "modelinfos"
    known.mkdir(exist_ok=True)
    cache_root.mkdir(parents=True, exist_ok=True)
    (cache_root / "modelinfos").symlink_to(known)


def _without_packing() -> None:
    """Let linear layers keep their weights, as they do on GPUs, and share them as they are there."""
    from vllm import _custom_ops

    from modelexpress.engines.vllm import loader
    from modelexpress.engines.vllm.identity import Layout

    _custom_ops._supports_onednn = False
    vars(loader)["layout_here"] = lambda: Layout.PROCESSED


def _fills_by_hand(config: Any) -> bool:
    """Return whether the loader fills a model that somebody else has made, as it fills those that it makes."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = copy.deepcopy(config)
    config.compilation_config.static_forward_context.clear()
    with set_current_vllm_config(config), set_default_torch_dtype(config.model_config.dtype):
        made = {
            name: initialize_model(vllm_config=config, model_config=config.model_config, prefix=f"{name}.")
            for name in ("ours", "theirs")
        }
        get_model_loader(config.load_config).load_weights(made["ours"], config.model_config)
        native = dataclasses.replace(config.load_config, load_format="auto")
        get_model_loader(native).load_weights(made["theirs"], config.model_config)
    pairs = zip(made["ours"].parameters(), made["theirs"].parameters(), strict=True)
    return all(bool(ours.equal(theirs)) for ours, theirs in pairs)


def main() -> None:
    """Start vLLM, generate, say which tokens, and stay until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    parser = argparse.ArgumentParser()
    parser.add_argument("given", type=json.loads)
    given = parser.parse_args().given
    from vllm import LLM, SamplingParams
    from vllm.model_executor.model_loader import get_model_loader

    if given["layout"] == "processed":
        _without_packing()
    options = {"enforce_eager": True, "max_model_len": 128, "dtype": "bfloat16", **given["options"]}
    engine = LLM(given["model"], **options)
    config = engine.llm_engine.vllm_config
    # As vLLM does before it starts workers on other hosts; of a folder there is nothing to download.
    get_model_loader(config.load_config).download_model(config.model_config)
    found = engine.generate(["what is a peer"], SamplingParams(temperature=0, max_tokens=12))
    said = {"tokens": list(found[0].outputs[0].token_ids), "fills_by_hand": given["by_hand"] and _fills_by_hand(config)}
    print(json.dumps(said), file=answers, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
