"""`mx plan MODEL`: what would be read from where, moving nothing."""

import json

import pytest
import torch

import modelexpress as mx
from modelexpress.client import Client
from modelexpress.errors import LoadError, NoSourceFound
from modelexpress.identity import SourceIdentity
from modelexpress.wire.records import SourceStatus, WorkerRecord
from tests.support.commands import run
from tests.support.materials import SETTINGS, make_material, new_identity


def publish_a_ghost(registry: str, identity: SourceIdentity) -> None:
    """Publish a source that is not there, and whose name would steer a terminal."""
    record = WorkerRecord(worker_id="[red]ghost\x1b[2J", status=SourceStatus.READY, worker_grpc_endpoint="127.0.0.1:1")
    with Client(registry) as client:
        client.publish(identity, record)
        client.update_status(identity.source_id, record.worker_id, 0, SourceStatus.READY, 5.0)


def test_every_source_is_shown_in_the_order_of_asking(registry: str) -> None:
    material = make_material(100)
    identity = material.identity
    with mx.Worker(registry, settings=SETTINGS) as worker:
        publication = worker.publish(material)
        assert publication.wait_ready(10)
        publish_a_ghost(registry, identity)
        ended = run("plan", identity.model_name, "--registry", registry, "--json")
        first, second = json.loads(ended.stdout)["prospects"]
        table = run("plan", identity.model_name, "--registry", registry).stdout
        assert publication.readers == [], "the leases are given back"
    assert (first["worker_id"], first["endpoint"]) == (worker.worker_id, publication.endpoint)
    assert (first["transport"], first["tensors"], first["nbytes"]) == ("local", 100, 6400)
    assert first["seconds"] == pytest.approx(6400 / first["bytes_per_second"])
    assert (second["transport"], second["nbytes"]) == ("", 0)
    assert "127.0.0.1:1" in second["reasons"][0]
    assert "\x1b" not in table
    assert "[red]" in table, "what looks like markup is text"
    assert "local" in table


def test_a_plan_counts_tied_tensors_once(registry: str) -> None:
    tied = torch.ones(1000)
    identity = new_identity()
    with mx.publish({"a": tied, "b": tied}, identity, registry=registry, settings=SETTINGS) as publication:
        assert publication.wait_ready(10)
        foreseen = mx.plan_folder(identity.model_name, registry=registry, settings=SETTINGS)
        report = mx.load({"a": torch.zeros(1000), "b": torch.zeros(1000)}, identity, registry=registry)
    assert foreseen.choice is not None
    assert foreseen.choice.tensors == 2
    assert report.nbytes == 8000, "two memories at the target"
    assert foreseen.choice.nbytes == 4000, "one at the source"


def test_a_model_that_nobody_has_or_that_is_split_has_no_plan(registry: str) -> None:
    with pytest.raises(NoSourceFound, match="'no/such-model'"):
        mx.plan_folder("no/such-model", registry=registry)
    material = make_material(rank=1)
    with mx.Worker(registry, settings=SETTINGS) as worker:
        assert worker.publish(material).wait_ready(10)
        with pytest.raises(LoadError, match="split over ranks"):
            mx.plan_folder(material.identity.model_name, registry=registry)


def test_a_name_that_is_there_twice_has_no_plan(registry: str) -> None:
    name = new_identity().model_name
    with mx.Worker(registry, settings=SETTINGS) as worker:
        for dtype in ("float32", "bfloat16"):
            publication = worker.publish(make_material(identity=SourceIdentity(model_name=name, dtype=dtype)))
            assert publication.wait_ready(10)
        with pytest.raises(LoadError, match="--source-id"):
            mx.plan_folder(name, registry=registry)
        plan = mx.plan_folder(name, registry=registry, source_id=publication.source_id)
    assert plan.choice is not None
    assert plan.choice.worker_id == worker.worker_id
