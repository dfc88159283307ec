"""`trtllm-build` as a process, played by a stand-in: its options, its output, and each way to end."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from modelexpress.engines.trtllm.build import BuildConfig, build_engine, default_build_config, find_builder
from modelexpress.engines.trtllm.errors import BuilderMissing
from modelexpress.errors import CheckpointError, ModelExpressError
from modelexpress.settings import Settings
from modelexpress.weights.staging_folder import PREFIX
from tests.support.children import Child
from tests.support.trtllm_build_processes import await_processes, ended
from tests.support.trtllm_build_stand_in import install
from tests.support.trtllm_checkpoints import config_of, plain_rank, write_checkpoint
from tests.support.waiting import wait_until


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin')}:/usr/bin:/bin")
    return find_builder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", config_of(2), plain_rank)


def test_the_defaults_are_those_of_the_field_and_the_environment_changes_them() -> None:
    assert default_build_config(Settings.read({})) == {
        "gemm_plugin": "auto",
        "max_batch_size": 8,
        "max_input_len": 2048,
        "max_seq_len": 4096,
    }
    said = {"TRTLLM_MAX_BATCH_SIZE": "16", "TRTLLM_MAX_INPUT_LEN": "1", "TRTLLM_MAX_SEQ_LEN": "many"}
    config = default_build_config(Settings.read(said))
    assert (config["max_batch_size"], config["max_input_len"], config["max_seq_len"]) == (16, 1, 4096)


def test_an_engine_is_built_with_the_options_and_the_output_is_shown(
    builder: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "out" / "engine"
    engine.mkdir(parents=True)
    (engine / "rank7.engine").write_text("of an older checkpoint")
    config: BuildConfig = {
        "gemm_plugin": "auto",
        "max_batch_size": "16",
        "workers": None,
        "fast_build": True,
        "monitor_memory": False,
    }
    assert build_engine(builder, folder, engine, config) == engine
    arguments = json.loads((engine / "arguments.json").read_text())
    given = {name: value for name, value in arguments.items() if value is not None}
    output = Path(given.pop("output_dir"))
    assert (output.parent, output.name.startswith(PREFIX)) == (engine.parent, True)
    assert given == {
        "checkpoint_dir": str(folder),
        "gemm_plugin": "auto",
        "max_batch_size": "16",
        "fast_build": True,
    }
    assert [path.name for path in engine.parent.iterdir()] == ["engine"]
    assert sorted(path.name for path in engine.glob("*.engine")) == ["rank0.engine", "rank1.engine"]
    out, errors = capfd.readouterr()
    assert out == "", "standard output belongs to the caller"
    assert "this is a stand-in" in errors
    assert f"reading {folder}" in errors


def test_a_builder_that_fails_leaves_no_engine(
    builder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_ENDS", "7")
    with pytest.raises(RuntimeError) as caught:
        build_engine(builder, folder, tmp_path / "engine", {})
    assert str(caught.value) == "trtllm-build failed with code 7"
    assert isinstance(caught.value, ModelExpressError)
    assert not (tmp_path / "engine").exists()
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_a_builder_that_fails_leaves_the_engine_that_is_there(
    builder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_ENDS", "7")
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "rank0.engine").write_text("it works")
    with pytest.raises(RuntimeError):
        build_engine(builder, folder, engine, {})
    assert [(path.name, path.read_text()) for path in engine.iterdir()] == [("rank0.engine", "it works")]


def test_an_engine_that_cannot_be_replaced_is_said(builder: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file"):
        build_engine(builder, folder, tmp_path / "engine", {})
    assert (tmp_path / "engine").read_text() == "a file"


def test_a_slow_builder_that_is_killed_is_a_failure_and_nothing_that_it_started_goes_on(
    builder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_ENDS", "slow")
    engine, errors = tmp_path / "engine", []
    engine.mkdir()
    (engine / "rank7.engine").write_text("of an older checkpoint")

    def build() -> None:
        try:
            build_engine(builder, folder, engine, {})
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=build)
    thread.start()
    process, helper = await_processes(engine)
    assert [path.name for path in engine.iterdir()] == ["rank7.engine"], "nobody sees half of the new one"
    os.kill(process, signal.SIGKILL)
    thread.join(20)
    assert errors == ["trtllm-build failed with code -9"]
    wait_until(lambda: ended(helper))
    assert [path.name for path in engine.iterdir()] == ["rank7.engine"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_no_builder_outlives_a_process_that_cannot_clean_up(
    builder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("STAND_IN_ENDS", "slow")
    engine = tmp_path / "engine"
    with Child("tests.support.trtllm_building", str(builder), str(folder), str(engine)) as loader:
        processes = await_processes(engine)
        guard = os.getpgid(processes[0])
        loader.process.send_signal(number)
        assert loader.process.wait(20) == -number
        wait_until(lambda: all(ended(process) for process in (*processes, guard)), 5)


def test_a_process_that_a_loader_has_forked_keeps_no_builder_alive(
    builder: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_ENDS", "slow")
    engine = tmp_path / "engine"
    with Child("tests.support.trtllm_building", str(builder), str(folder), str(engine), "fork") as loader:
        processes = await_processes(engine)
        forked = loader.answer()
        loader.kill()
        try:
            wait_until(lambda: all(ended(process) for process in processes), 5)
            assert not ended(forked)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_a_builder_that_is_missing_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install TensorRT-LLM") as caught:
        find_builder()
    assert isinstance(caught.value, BuilderMissing)


def test_a_builder_that_cannot_be_started(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be started"):
        build_engine(tmp_path, folder, tmp_path / "engine", {})
    assert not (tmp_path / "engine").exists()
