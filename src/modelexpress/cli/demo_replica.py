"""One replica of the demonstration, a process of its own: gets the weights, answers a prompt, becomes a source.

It says what it did as one JSON line on standard output, and ends when its standard input ends.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import modelexpress as mx
from modelexpress.cli.demo_model import demo_logits, logits_fingerprint

PROMPT = "The weights of a model are"
DISK = "disk"
PEER = "peer"


@dataclass
class Account:
    """What a replica did: seconds by stage, and the facts of its load."""

    origin: str
    stages: list[tuple[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        started = time.perf_counter()
        yield
        self.stages.append((name, time.perf_counter() - started))


def demo_identity(folder: Path) -> mx.SourceIdentity:
    """Return the identity under which every replica of the demonstration knows its weights."""
    return mx.SourceIdentity(model_name=folder.name, dtype="bfloat16", tensor_parallel_size=1)


def run_replica(folder: Path, registry: str, origin: str) -> None:
    """Be a replica until standard input ends."""
    account = Account(origin)
    with account.stage("import libraries"):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
    identity = demo_identity(folder)
    if origin == DISK:
        with account.stage("load from disk"):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    else:
        with account.stage("build without memory"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
        with account.stage("load from a peer"):
            report = mx.load(model, identity, registry=registry)
        account.facts["report"] = json.loads(report.json())
    with account.stage("answer a prompt"):
        logits = demo_logits(model.eval(), tokenizer, PROMPT)
    account.facts["logits"] = logits_fingerprint(logits)
    with account.stage("publish"):
        publication = mx.publish(model, identity, registry=registry, files=folder)
        if not publication.wait_ready(30):
            sys.exit(f"the registry at {registry} did not take the publication within 30 s")
    with publication:
        account.facts["worker_id"] = publication.worker_id
        sys.stdout.write(json.dumps({"origin": origin, "stages": account.stages, **account.facts}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("registry")
    parser.add_argument("origin", choices=[DISK, PEER])
    arguments = parser.parse_args()
    run_replica(arguments.folder, arguments.registry, arguments.origin)
