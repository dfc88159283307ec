"""TensorRT-LLM checkpoints from folder to folder: bit for bit, all ranks at once, and what each failure leaves."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import modelexpress as mx
from modelexpress.client import Client
from modelexpress.engines.trtllm import MxTrtllmSourcePublisher, MxTrtllmTargetLoader, create_trtllm_from_mx
from modelexpress.engines.trtllm.partial_folder import partial_name
from modelexpress.errors import CheckpointError, LoadError, ModelExpressError
from modelexpress.weights.safetensors_header import LENGTH_BYTES
from modelexpress.wire.records import SourceStatus
from tests.support.materials import make_material, new_identity
from tests.support.registries import RegistryProcess
from tests.support.trtllm_build_stand_in import install
from tests.support.trtllm_checkpoints import (
    Tensors,
    config_of,
    fp8_rank,
    int4_rank,
    pipeline_rank,
    plain_rank,
    write_checkpoint,
)

SETTINGS = mx.Settings(worker_grpc_port=0, chunk_bytes=64 << 10)


@pytest.fixture
def name() -> str:
    return new_identity().model_name


def target(registry: str, name: str, out: Path, **options: Any) -> MxTrtllmTargetLoader:
    return MxTrtllmTargetLoader(name, registry, out, wait=options.pop("wait", 10), settings=SETTINGS, **options)


def source(registry: str, name: str, folder: Path) -> MxTrtllmSourcePublisher:
    return MxTrtllmSourcePublisher(folder, name, registry, settings=SETTINGS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("config", "make"),
    [
        (config_of(2), plain_rank),
        (config_of(2, quantization={"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}), fp8_rank),
        (config_of(2, quantization={"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": True}), int4_rank),
        (config_of(1, 2), pipeline_rank),
        (config_of(1), plain_rank),
    ],
    ids=["plain", "fp8", "int4", "pipeline", "one rank"],
)
def test_the_checkpoint_arrives_bit_for_bit(
    registry: str, name: str, tmp_path: Path, config: dict[str, Any], make: Callable[[int], Tensors]
) -> None:
    folder = write_checkpoint(tmp_path / "source", config, make)
    with source(registry, name, folder) as publisher:
        assert publisher.config == config
        loader = target(registry, name, tmp_path / "out")
        assert loader.load(skip_build=True) == str(tmp_path / "out" / "checkpoint")
    # The files are equal as a whole: names, shapes, dtypes, order, metadata, and the configuration as it was written.
    assert contents(tmp_path / "out" / "checkpoint") == contents(folder)
    assert loader.config == config
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint"]
    stats = loader.get_transfer_stats()
    ranks = range(config["mapping"]["world_size"])
    assert stats["total_bytes"] == sum(tensor.nbytes for rank in ranks for tensor in make(rank).values())
    assert stats["bandwidth_gbps"] == pytest.approx(stats["total_bytes"] * 8 / stats["total_time"] / 1e9)


def test_other_small_files_come_along_and_python_does_not(registry: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "convert.py").write_text("raise SystemExit")
    with source(registry, name, folder):
        target(registry, name, tmp_path / "out").load(skip_build=True)
    received = contents(tmp_path / "out" / "checkpoint")
    assert received.keys() == {"config.json", "tokenizer.json", "rank0.safetensors", "rank1.safetensors"}


def write_header(path: Path, fields: dict[str, Any], nbytes: int) -> None:
    text = json.dumps(fields).encode()
    path.write_bytes(len(text).to_bytes(LENGTH_BYTES, "little") + text + bytes(nbytes))


def test_an_unknown_dtype_is_refused_and_never_becomes_another(registry: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    write_header(folder / "rank1.safetensors", {"w": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, 3)
    publisher = source(registry, name, folder)
    with pytest.raises(CheckpointError, match="F6_E2M3"):
        publisher.initialize()
    assert publisher.publications == ()
    with Client(registry) as client:
        assert client.list_sources(model_name=name) == []


@pytest.mark.parametrize("missing", ["config.json", "rank1.safetensors"])
def test_a_source_without_a_file_says_which(registry: str, name: str, tmp_path: Path, missing: str) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        source(registry, name, folder).initialize()


def test_a_source_serves_from_memory_and_withdraws(registry: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    expected = contents(folder)
    publisher = source(registry, name, folder)
    publisher.initialize()
    publisher.initialize()
    with Client(registry) as client:
        refs = client.list_sources(model_name=name, status=SourceStatus.READY)
        assert sorted(ref.worker_rank for ref in refs) == [0, 1]
        assert len({ref.worker_id for ref in refs}) == 2, "one worker for each rank"
        for path in folder.iterdir():
            path.unlink()
        target(registry, name, tmp_path / "out").load(skip_build=True)
        publisher.shutdown()
        publisher.shutdown()
        assert client.list_sources(model_name=name, status=SourceStatus.READY) == []
    assert contents(tmp_path / "out" / "checkpoint") == expected


def test_nobody_has_it(registry: str, tmp_path: Path) -> None:
    with pytest.raises(TimeoutError) as caught:
        create_trtllm_from_mx("llama-70b", registry, tmp_path / "out", skip_build=True, wait=0)
    assert str(caught.value) == "Source not found for llama-70b after 0 s"
    assert isinstance(caught.value, ModelExpressError)
    with pytest.raises(TimeoutError, match=r"after 0\.3 s"):
        target(registry, "llama-70b", tmp_path / "out", wait=0.3).load(skip_build=True)
    assert not (tmp_path / "out").exists()


def test_a_registry_that_is_gone_is_waited_for_and_is_the_cause(tmp_path: Path) -> None:
    with RegistryProcess() as gone:
        gone.kill()
        with pytest.raises(TimeoutError, match=r"Source not found for m after 0\.1 s") as caught:
            target(gone.address, "m", tmp_path / "out", wait=0.1).load(skip_build=True)
    assert isinstance(caught.value.__cause__, mx.ModelExpressError)


def test_a_target_that_starts_first_waits_for_the_source(registry: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    paths: list[str] = []
    loading = threading.Thread(
        target=lambda: paths.append(target(registry, name, tmp_path / "out", wait=60).load(skip_build=True))
    )
    loading.start()
    with source(registry, name, folder):
        loading.join(60)
    assert paths == [str(tmp_path / "out" / "checkpoint")]


def test_a_rank_that_nobody_has_is_waited_for(
    registry: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    with source(registry, name, folder) as publisher:
        publisher.publications[1].close()
        with pytest.raises(TimeoutError):
            target(registry, name, tmp_path / "out", wait=0).load(skip_build=True)
    assert "lacks ranks [1] of 2" in caplog.text
    assert not (tmp_path / "out").exists()


def test_two_checkpoints_of_one_name_are_never_put_together(registry: str, name: str, tmp_path: Path) -> None:
    old = write_checkpoint(tmp_path / "old", config_of(2), plain_rank)
    new = write_checkpoint(tmp_path / "new", config_of(2), lambda rank: plain_rank(rank + 7))
    with source(registry, name, old), source(registry, name, new) as meant:
        with pytest.raises(
            LoadError, match=r"2 checkpoints .*, which differ in their weights or files: .* source id"
        ) as caught:
            target(registry, name, tmp_path / "out").load(skip_build=True)
        assert str(caught.value).count("(2 ranks: tp 2, pp 1, bfloat16)") == 2
        assert "--source-id" in str(caught.value)
        source_id = meant.publications[0].source_id
        target(registry, name, tmp_path / "out", source_id=source_id).load(skip_build=True)
    assert contents(tmp_path / "out" / "checkpoint") == contents(new)


def test_two_sizes_under_one_name_are_told_apart(registry: str, name: str, tmp_path: Path) -> None:
    two = write_checkpoint(tmp_path / "two", config_of(2), plain_rank)
    one = write_checkpoint(tmp_path / "one", config_of(1, quantization={"quant_algo": "FP8"}), fp8_rank)
    with source(registry, name, two), source(registry, name, one), pytest.raises(LoadError) as caught:
        target(registry, name, tmp_path / "out").load(skip_build=True)
    said = str(caught.value)
    assert "(2 ranks: tp 2, pp 1, bfloat16)" in said
    assert "(1 rank: tp 1, pp 1, bfloat16, FP8)" in said
    assert "differ in" not in said


def test_what_other_engines_publish_under_the_name_is_no_source(registry: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    with mx.Worker(registry, settings=SETTINGS) as worker:
        assert worker.publish(make_material(identity=mx.SourceIdentity(model_name=name))).wait_ready(10)
        with pytest.raises(TimeoutError):
            target(registry, name, tmp_path / "out", wait=0).load(skip_build=True)
        with source(registry, name, folder):
            target(registry, name, tmp_path / "out").load(skip_build=True)
    assert contents(tmp_path / "out" / "checkpoint") == contents(folder)


def test_a_second_load_moves_nothing_and_a_new_checkpoint_replaces_the_old_one(
    registry: str, name: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    out = tmp_path / "out"
    with source(registry, name, folder):
        target(registry, name, out).load(skip_build=True)
        again = target(registry, name, out)
        again.load(skip_build=True)
    assert again.get_transfer_stats()["total_bytes"] == 0
    assert contents(out / "checkpoint") == contents(folder)
    # Only one rank differs, and what is in place must not be written to.
    held = (out / "checkpoint" / "rank0.safetensors").open("rb")
    new = write_checkpoint(tmp_path / "new", config_of(2), lambda rank: plain_rank(rank or 9))
    before = contents(folder)
    with held, source(registry, name, new):
        target(registry, name, out).load(skip_build=True)
        assert held.read() == before["rank0.safetensors"]
    assert contents(out / "checkpoint") == contents(new)
    assert [path.name for path in out.iterdir()] == ["checkpoint"]


def test_several_targets_at_once(registry: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(4), plain_rank)
    outs = [tmp_path / f"out{number}" for number in range(3)]
    with source(registry, name, folder):
        threads = [
            threading.Thread(target=lambda out=out: target(registry, name, out).load(skip_build=True)) for out in outs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    for out in outs:
        assert contents(out / "checkpoint") == contents(folder)


def test_the_engine_is_built_from_what_arrived(
    registry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin')}:/usr/bin:/bin")
    out = tmp_path / "out"
    with source(registry, name, folder):
        monkeypatch.setenv("STAND_IN_ENDS", "3")
        with pytest.raises(RuntimeError, match="trtllm-build failed with code 3"):
            create_trtllm_from_mx(name, registry, out)
        # The checkpoint is complete, so that nothing travels again.
        assert [path.name for path in out.iterdir()] == ["checkpoint"]
        monkeypatch.setenv("STAND_IN_ENDS", "0")
        loader = target(registry, name, out, build_config={"max_batch_size": "16"})
        assert loader.load() == str(out / "engine")
    assert loader.get_transfer_stats()["total_bytes"] == 0
    assert (out / "engine" / "rank1.engine").read_text() == "8 tensors"
    arguments = json.loads((out / "engine" / "arguments.json").read_text())
    assert {name: arguments[name] for name in ("gemm_plugin", "max_batch_size", "max_input_len", "max_seq_len")} == {
        "gemm_plugin": "auto",
        "max_batch_size": "16",
        "max_input_len": "2048",
        "max_seq_len": "4096",
    }
    assert arguments["checkpoint_dir"] == str(out / "checkpoint")


def test_a_missing_builder_is_found_out_before_anything_travels(
    registry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    monkeypatch.setenv("PATH", str(tmp_path))
    with source(registry, name, folder), pytest.raises(FileNotFoundError, match="trtllm-build"):
        target(registry, name, tmp_path / "out").load()
    assert not (tmp_path / "out").exists()


def test_log_lines_tell_what_was_moved_by_rank_and_in_total(
    registry: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "modelexpress.engines.trtllm")
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    with source(registry, name, folder):
        target(registry, name, tmp_path / "out").load(skip_build=True)
    said = caplog.text
    for rank in range(2):
        assert f"rank {rank}: 8 tensors, 0.000 GB in" in said
    assert f"{name}: 2 ranks received, 16 tensors, 0.000 GB in" in said
    assert said.count("GB/s") >= 6


def test_two_loads_into_one_folder_do_not_mix(registry: str, name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    out = tmp_path / "out"
    errors: list[CheckpointError] = []

    def second(done: int, total: int) -> None:
        try:
            target(registry, name, out).load(skip_build=True)
        except CheckpointError as error:
            errors.append(error)

    with source(registry, name, folder):
        target(registry, name, out, progress=second).load(skip_build=True)
    assert errors
    assert "another load writes into" in str(errors[0])
    assert contents(out / "checkpoint") == contents(folder)
    assert not (out / partial_name("checkpoint")).exists()
