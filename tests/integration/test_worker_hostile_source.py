"""A hostile source against a target: an error of ours, nothing written, and the next source is asked."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import modelexpress as mx
from modelexpress.client import Client
from modelexpress.errors import ModelExpressError, NoSourceFound, PartialModel
from modelexpress.peer import HeldLease, Material, PeerClient
from modelexpress.wire.peer import LeaseGrant, ManifestHead
from modelexpress.wire.records import FileSpec, SourceStatus, WorkerRecord
from tests.support.hostile_worker import HOSTILE, Babbler, HostileWorker, Lie
from tests.support.lies import CONTENT_LIES, FILE_PATHS, HARMLESS_LIES, MANIFEST_LIES, TRANSPORT_LIES
from tests.support.materials import SETTINGS, make_material, worker_server
from tests.support.waiting import wait_until

REFUSED = MANIFEST_LIES | TRANSPORT_LIES
ALL_LIES = REFUSED | CONTENT_LIES
# A pull takes names and dtypes as they come, so another one is no lie to it.
PULL_LIES = {what: lie for what, lie in ALL_LIES.items() if what not in ("another name", "another dtype")}
ADDRESSES = ["", "nonsense", "127.0.0.1:99999", "unix:/etc/passwd", "dns:///", "\n", "x:" * 999]


@pytest.fixture
def material() -> Material:
    return make_material(files={"config.json": b"{}"})


@pytest.fixture
def honest(registry: str, material: Material) -> Iterator[str]:
    """A second source of the same identity, with a reader, so that the hostile one is asked first."""
    with worker_server(material, worker_id="honest") as server, Client(registry) as client:
        endpoint = f"127.0.0.1:{server.port}"
        record = WorkerRecord(worker_id="honest", status=SourceStatus.READY, worker_grpc_endpoint=endpoint)
        client.publish(material.identity, record)
        client.update_status(material.identity.source_id, "honest", 0, SourceStatus.READY, 1.0)
        yield server.shelf.worker_id


def honestly(*_: object) -> None:
    """Say what is so: the lie is elsewhere."""


def target(device: str = "cpu") -> dict[str, torch.Tensor]:
    return {f"tensor.{number}": torch.zeros(16, device=device) for number in range(4)}


def right(model: dict[str, torch.Tensor], material: Material) -> bool:
    content = b"".join(tensor.numpy().tobytes() for tensor in model.values())
    return content == bytes(material.regions[0].view())


def load(model: dict[str, torch.Tensor], material: Material, registry: str) -> mx.LoadReport:
    return mx.load(model, material.identity, registry=registry, settings=SETTINGS)


@pytest.mark.parametrize("lie", REFUSED.values(), ids=REFUSED)
def test_a_lie_about_the_model_is_refused_before_anything_changes(registry: str, material: Material, lie: Lie) -> None:
    model = target()
    with HostileWorker(registry, material, lie), pytest.raises(ModelExpressError) as caught:
        load(model, material, registry)
    assert not any(tensor.any() for tensor in model.values())
    assert not isinstance(caught.value, NoSourceFound), "it was asked"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("lie", CONTENT_LIES.values(), ids=CONTENT_LIES)
def test_a_lie_about_content_is_never_delivered(registry: str, material: Material, lie: Lie) -> None:
    in_place, meta = target(), target("meta")
    with HostileWorker(registry, material, lie):
        with pytest.raises(PartialModel, match="digest"):
            load(in_place, material, registry)
        with pytest.raises(ModelExpressError, match="digest"):
            load(meta, material, registry)
    assert all(tensor.is_meta for tensor in meta.values())


@pytest.mark.parametrize("lie", ALL_LIES.values(), ids=ALL_LIES)
def test_the_next_source_is_asked_after_a_liar(registry: str, material: Material, honest: str, lie: Lie) -> None:
    model = target()
    with HostileWorker(registry, material, lie):
        report = load(model, material, registry)
    assert report.source == honest
    assert any(HOSTILE in note for note in report.notes)
    assert right(model, material)


@pytest.mark.parametrize("lie", HARMLESS_LIES.values(), ids=HARMLESS_LIES)
def test_a_lie_that_does_not_matter(registry: str, material: Material, lie: Lie) -> None:
    model = target()
    with HostileWorker(registry, material, lie):
        assert load(model, material, registry).source == HOSTILE
    assert right(model, material)


def test_a_lease_that_lasts_no_time_is_not_renewed_without_pause(registry: str, material: Material) -> None:
    lie = HARMLESS_LIES["a lease that lasts no time"]
    with HostileWorker(registry, material, lie) as worker, PeerClient(worker.endpoint) as client:
        grant = client.acquire(material.identity.source_id, HOSTILE, "reader", "host")
        started = time.monotonic()
        with HeldLease(client, grant):
            wait_until(lambda: worker.reports >= 3)
        assert time.monotonic() - started > 0.1


@pytest.mark.parametrize("endpoint", ADDRESSES, ids=repr)
def test_an_address_that_is_none_is_passed_over(registry: str, material: Material, honest: str, endpoint: str) -> None:
    model = target()
    with HostileWorker(registry, material, honestly, endpoint=endpoint):
        plan = mx.plan(model, material.identity, registry=registry, settings=SETTINGS)
        assert load(model, material, registry).source == honest
    assert [bool(prospect.transport) for prospect in plan.prospects] == [False, True]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("lie", PULL_LIES.values(), ids=PULL_LIES)
def test_a_pull_from_a_liar_leaves_nothing(registry: str, material: Material, tmp_path: Path, lie: Lie) -> None:
    with HostileWorker(registry, material, lie), pytest.raises(ModelExpressError):
        mx.pull_folder(material.identity.model_name, tmp_path / "out", registry=registry, settings=SETTINGS)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("path", FILE_PATHS, ids=repr)
def test_a_pull_writes_no_file_where_it_must_not(registry: str, tmp_path: Path, path: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    material = make_material(files={"config.json": b"{}", path: b"{}"})
    with (
        HostileWorker(registry, material, honestly),
        pytest.raises(ModelExpressError, match="side file"),
    ):
        mx.pull_folder(material.identity.model_name, home / "out", registry=registry, settings=SETTINGS)
    assert tree(tmp_path) == ["home"]


@pytest.mark.parametrize(
    "change", [{"nbytes": 1 << 29}, {"nbytes": 1 << 62}, {"nbytes": 1}, {"sha256": "0" * 64}, {"sha256": "x"}], ids=str
)
def test_a_file_that_is_not_what_was_said_is_refused(registry: str, tmp_path: Path, change: dict[str, object]) -> None:
    material = make_material(files={"config.json": json.dumps({}).encode()})
    wrong: FileSpec = replace(material.manifest.files[0], **change)  # type: ignore[arg-type]
    material = replace(material, manifest=replace(material.manifest, files=(wrong,)))
    with HostileWorker(registry, material, honestly), pytest.raises(ModelExpressError):
        mx.pull_folder(material.identity.model_name, tmp_path / "out", registry=registry, settings=SETTINGS)
    assert tree(tmp_path) == []


GRANT = LeaseGrant("lease", 30.0, ManifestHead("module", "nh", 1, 1, 1, (1,), ()), ())
CALLS: list[Callable[[PeerClient], object]] = [
    lambda client: client.acquire("s", "w", "r", "h"),
    lambda client: client.manifest(GRANT),
    lambda client: client.file(GRANT, FileSpec("config.json", 2, "")),
    lambda client: client.report("lease", 1),
    lambda client: client.readers(),
    lambda client: client.release("lease"),
]


@pytest.fixture(scope="module")
def babbler() -> Iterator[Babbler]:
    with Babbler() as server:
        yield server


@settings(max_examples=40, deadline=None)
@given(answer=st.binary(max_size=100))
@example(answer=b"\x0a\x02\xff\xfe")  # a first field that should be text and is not
def test_answers_that_are_no_messages_are_errors_of_ours(babbler: Babbler, answer: bytes) -> None:
    babbler.answer = answer
    with PeerClient(babbler.address) as client:
        for call in CALLS:
            with suppress(ModelExpressError):  # random bytes may be a message
                call(client)
