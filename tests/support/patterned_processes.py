"""Sources and targets of the patterned model, each a process that sees the GPUs it is given, and may be killed."""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from typing import Any

import torch

import modelexpress as mx
from tests.support.children import Child, say
from tests.support.patterned_model import empty, free_bytes, is_right, patterned

MODULE = "tests.support.patterned_processes"


class PatternedSource(Child):
    """A process that publishes the model until it is told to close the publication, or ends.

    Args:
        registry: HOST:PORT.
        identity: Its name is what counts.
        megabytes: Size of the model.
        visible: CUDA_VISIBLE_DEVICES of the process.
        place: Where the model is, as the process sees it.
        uplink: Bytes a second that readers may take; 0: no limit.
    """

    def __init__(
        self,
        registry: str,
        identity: mx.SourceIdentity,
        megabytes: int,
        *,
        visible: str,
        place: str = "cuda:0",
        uplink: int = 0,
    ) -> None:
        options = ("source", registry, identity.model_name, str(megabytes), place, "--uplink", str(uplink))
        super().__init__(MODULE, *options, environment={"CUDA_VISIBLE_DEVICES": visible})
        self.worker_id: str = self.answer()["worker_id"]

    def ask(self, what: str) -> Any:
        """Return the answer to one of the keys of `_answers`."""
        self.tell(what)
        return self.answer()[what]


class PatternedTarget(Child):
    """A process that loads the model once, at its start.

    Args:
        registry: HOST:PORT.
        identity: Of the source.
        megabytes: Size of the model.
        visible: CUDA_VISIBLE_DEVICES of the process.
        place: Where the model goes, as the process sees it.
        share: Of the device's memory, what torch may take in the process.
    """

    def __init__(
        self,
        registry: str,
        identity: mx.SourceIdentity,
        megabytes: int,
        *,
        visible: str,
        place: str = "cuda:0",
        share: float = 1.0,
    ) -> None:
        options = ("target", registry, identity.model_name, str(megabytes), place, "--share", str(share))
        super().__init__(MODULE, *options, environment={"CUDA_VISIBLE_DEVICES": visible})

    def wait_until_bytes_arrive(self) -> None:
        """Return when the first bytes are verified, and most are still to come."""
        assert self.answer() == {"moving": True}

    def result(self) -> dict[str, Any]:
        """Return how the load went."""
        while "moving" in (found := self.answer()):
            pass
        return dict(found)


def serve(given: argparse.Namespace) -> None:
    """Publish, and answer what is asked, until standard input ends."""
    model = patterned(given.megabytes, given.place)
    free_bytes(given.place)
    settings = mx.Settings(worker_grpc_port=0, chunk_bytes=1 << 20, uplink_limit=given.uplink)
    identity = mx.SourceIdentity(model_name=given.name)
    with mx.publish(model, identity, registry=given.registry, settings=settings) as publication:
        assert publication.wait_ready(30)
        say(json.dumps({"worker_id": publication.worker_id}))
        answers = _answers(model, publication, given)
        for line in sys.stdin:
            asked = line.strip()
            say(json.dumps({asked: answers[asked]()}))


def _answers(
    model: dict[str, torch.Tensor], publication: mx.Publication, given: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    scratch: list[torch.Tensor] = []

    def forget() -> bool:
        """Drop every reference to the tensors, and overwrite whatever memory that gives back."""
        model.clear()
        gc.collect()
        if given.place != "cpu":
            torch.cuda.empty_cache()
        scratch.append(torch.ones(given.megabytes << 20, dtype=torch.uint8, device=given.place))
        return True

    def close() -> bool:
        publication.close()
        return True

    return {
        "readers": lambda: len(publication.readers),
        "right": lambda: is_right(model),
        "free": lambda: free_bytes(given.place),
        "forget": forget,
        "close": close,
    }


def receive(given: argparse.Namespace) -> None:
    """Load a model that has no memory yet, and say how that went."""
    if given.share < 1:
        torch.cuda.set_per_process_memory_fraction(given.share, given.place)
    model = empty(given.megabytes, "meta")
    settings = mx.Settings(worker_grpc_port=0, chunk_bytes=1 << 20)
    identity = mx.SourceIdentity(model_name=given.name)
    said = False

    def progress(done: int, total: int) -> None:
        nonlocal said
        if not said:
            say(json.dumps({"moving": True}))
        said = True

    try:
        report = mx.load(
            model, identity, registry=given.registry, device=given.place, settings=settings, progress=progress
        )
    except (mx.ModelExpressError, RuntimeError) as error:  # torch's own errors are of the second kind
        untouched = all(tensor.is_meta for tensor in model.values())
        say(json.dumps({"error": type(error).__name__, "text": str(error), "untouched": untouched}))
    else:
        places = sorted({str(tensor.device) for tensor in model.values()})
        say(json.dumps({"transport": report.transport, "right": is_right(model), "places": places}))
    sys.stdin.read()


def main() -> None:
    """Be a source or a target."""
    parser = argparse.ArgumentParser()
    for name in ("role", "registry", "name"):
        parser.add_argument(name)
    parser.add_argument("megabytes", type=int)
    parser.add_argument("place")
    parser.add_argument("--uplink", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0)
    given = parser.parse_args()
    (serve if given.role == "source" else receive)(given)


if __name__ == "__main__":
    main()
