"""`mx pull MODEL --out DIR`: the folder that a source was made from, bit for bit, or nothing."""

import json
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import modelexpress as mx
from modelexpress.errors import CheckpointError, LoadError, NoSourceFound
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient
from tests.support.commands import Publishing, run, start
from tests.support.materials import SETTINGS, make_material, new_identity
from tests.support.sources import SourceProcess
from tests.support.sources import tensors as published_tensors
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def published(registry: str, checkpoint: Path) -> Iterator[dict[str, str]]:
    """What `mx publish` says of a source of the small model."""
    name = new_identity().model_name
    with Publishing(checkpoint, "--registry", registry, "--name", name) as publishing:
        yield publishing.fields


def tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Return dtype, shape and bytes of every tensor of a checkpoint."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118
                tensor = content.get_tensor(name)
                found[name] = (str(tensor.dtype), list(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
    return found


def side_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if "safetensors" not in p.name}


def test_a_pulled_folder_is_the_one_that_was_published(
    registry: str, checkpoint: Path, published: dict[str, str], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "new" / "copy"
    ended = run("pull", published["model_name"], "--out", out, "--registry", registry, "--json", "--shard-bytes", 10**6)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads(ended.stdout)
    assert (report["strategy"], report["source"]) == ("peer", published["worker_id"])
    assert len(list(out.glob("*.safetensors"))) > 1
    assert tensors(out) == tensors(checkpoint)
    assert side_files(out) == side_files(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == AutoModelForCausalLM.from_pretrained(checkpoint).dtype
    assert AutoTokenizer.from_pretrained(out)("weights") == AutoTokenizer.from_pretrained(checkpoint)("weights")


def test_a_folder_that_is_there_is_replaced_only_on_request(
    registry: str, checkpoint: Path, published: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    name = published["model_name"]
    with pytest.raises(CheckpointError, match="is not empty"):
        mx.pull_folder(name, tmp_path, registry=registry)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    ended = run("pull", name, "--out", tmp_path, "--registry", registry, "--overwrite")
    assert f"from peer {published['worker_id']}" in ended.stdout
    assert ended.stdout.endswith(f"written to {tmp_path}\n")
    assert tensors(tmp_path) == tensors(checkpoint)
    assert not (tmp_path / "mine.txt").exists()


def test_several_models_of_one_name_must_be_told_apart(registry: str, tmp_path: Path) -> None:
    name = new_identity().model_name
    with mx.Worker(registry, settings=SETTINGS) as worker:
        for dtype in ("float32", "bfloat16"):
            publication = worker.publish(make_material(identity=SourceIdentity(model_name=name, dtype=dtype)))
            assert publication.wait_ready(10)
        ended = run("pull", name, "--out", tmp_path / "copy", "--registry", registry)
        assert ended.returncode == 1
        for words in ("2 identities", "--source-id", publication.source_id):
            assert words in ended.stderr
        report = mx.pull_folder(name, tmp_path / "copy", registry=registry, source_id=publication.source_id)
        assert report.source == publication.worker_id


@pytest.mark.parametrize(("rank", "size"), [(1, 0), (1, 2), (0, 2)], ids=["rank 1", "rank 1 of 2", "rank 0 of 2"])
def test_a_part_of_a_model_is_no_checkpoint(registry: str, tmp_path: Path, rank: int, size: int) -> None:
    identity = SourceIdentity(model_name=new_identity().model_name, tensor_parallel_size=size)
    with mx.Worker(registry, settings=SETTINGS) as worker:
        assert worker.publish(make_material(identity=identity, rank=rank)).wait_ready(10)
        with pytest.raises(LoadError, match="split over ranks"):
            mx.pull_folder(identity.model_name, tmp_path / "copy", registry=registry)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_nobody_has_is_named(registry: str, tmp_path: Path) -> None:
    with pytest.raises(NoSourceFound, match="'no/such-model'"):
        mx.pull_folder("no/such-model", tmp_path / "copy", registry=registry)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    registry: str, published: dict[str, str], tmp_path: Path
) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    pull = ("pull", published["model_name"], "--out", tmp_path / "copy", "--registry", registry)
    ended = run(*pull, preexec=limit_files)
    assert ended.returncode == 1
    assert "the checkpoint needs" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_pull_that_is_stopped_leaves_nothing(registry: str, tmp_path: Path, number: signal.Signals) -> None:
    identity = new_identity()
    with (
        SourceProcess(registry, identity, 128, transport="tcp") as source,
        start("pull", identity.model_name, "--out", tmp_path / "new" / "copy", "--registry", registry) as process,
    ):
        wait_until(lambda: list(tmp_path.glob("new/*")))
        source.process.send_signal(signal.SIGSTOP)  # the pull now waits in the middle
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_pull_goes_on_from_another_source_when_one_is_killed(registry: str, tmp_path: Path) -> None:
    identity = new_identity()
    settings = mx.Settings(transport="tcp", chunk_bytes=1 << 20, stall_timeout=5)
    with (
        SourceProcess(registry, identity, 32, transport="tcp") as first,
        SourceProcess(registry, identity, 32, transport="tcp") as second,
    ):
        left = {first.worker_id: first, second.worker_id: second}

        def kill_once(done: int, total: int) -> None:
            if len(left) == 2 and done > total // 2:
                for source in (first, second):
                    with PeerClient(source.endpoint) as client:
                        if client.readers():
                            left.pop(source.worker_id).kill()

        name = identity.model_name
        report = mx.pull_folder(name, tmp_path / "copy", registry=registry, progress=kill_once, settings=settings)
    assert [report.source] == list(left)
    assert report.kept_bytes >= report.nbytes // 2
    pulled = {name: content for name, (_, _, content) in tensors(tmp_path / "copy").items()}
    assert pulled == {name: tensor.numpy().tobytes() for name, tensor in published_tensors(32).items()}
