"""TensorRT-LLM checkpoints when something dies, lies or is full: what is kept, what is said, what is left."""

import json
import resource
import signal
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

import modelexpress as mx
from modelexpress.client import Client
from modelexpress.engines.trtllm import MxTrtllmSourcePublisher, MxTrtllmTargetLoader
from modelexpress.engines.trtllm.identity import header_name
from modelexpress.engines.trtllm.partial_folder import partial_name
from modelexpress.errors import CheckpointError
from modelexpress.identity import BackendFramework, SourceIdentity
from tests.support.children import Child
from tests.support.commands import run, start
from tests.support.materials import make_material, new_identity
from tests.support.registries import RegistryProcess
from tests.support.trtllm_build_processes import await_processes, ended
from tests.support.trtllm_build_stand_in import install
from tests.support.trtllm_checkpoints import big_rank, config_of, contents, plain_rank, write_checkpoint
from tests.support.trtllm_source import TrtllmSource
from tests.support.trtllm_target import TrtllmTarget
from tests.support.waiting import wait_until

MEGABYTES = 48
RANKS = 2
TOTAL = RANKS * MEGABYTES << 20
SLOW = {"MX_TRANSPORT": "tcp", "MX_CHUNK_BYTES": str(1 << 20), "MX_UPLINK_LIMIT": str(24 << 20)}
"""Of a source: 24 MiB a second for each rank, so that a load takes two seconds and can be struck in the middle."""
FAST = {"MX_TRANSPORT": "tcp", "MX_CHUNK_BYTES": str(1 << 20)}
SETTINGS = mx.Settings(worker_grpc_port=0, transport="tcp", chunk_bytes=1 << 20, stall_timeout=5)


@pytest.fixture
def name() -> str:
    return new_identity().model_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks, which nobody may change."""
    place = tmp_path_factory.mktemp("trtllm") / "source"
    return write_checkpoint(place, config_of(RANKS), lambda rank: big_rank(rank, MEGABYTES))


def there(out: Path, fraction: float) -> bool:
    """Return whether so much of every rank has arrived: its file is of zeros before, and the tensors are random."""
    files = [out / partial_name("checkpoint") / f"rank{rank}.safetensors" for rank in range(RANKS)]
    return all(file.exists() and any(read_at(file, fraction)) for file in files)


def read_at(file: Path, fraction: float) -> bytes:
    with file.open("rb") as content:
        content.seek(int(file.stat().st_size * fraction))
        return content.read(16)


def loading(registry: str, name: str, out: Path, *options: object) -> "subprocess.Popen[str]":
    """Start `mx trtllm load`, which builds nothing."""
    return start("trtllm", "load", "--name", name, "--out", out, "--registry", registry, "--skip-build", *options)


def test_all_ranks_are_received_at_once(registry: str, name: str, folder: Path, tmp_path: Path) -> None:
    with (
        TrtllmSource(registry, folder, name, SLOW) as source,
        loading(registry, name, tmp_path / "out") as process,
    ):
        wait_until(lambda: source.read_ranks() == RANKS)
        assert process.poll() is None
        process.communicate(timeout=60)
    assert contents(tmp_path / "out" / "checkpoint") == contents(folder)


def test_a_source_that_is_killed_is_an_error_and_the_next_load_goes_on(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed: list[int] = []
    with TrtllmSource(registry, folder, name, SLOW) as source:

        def kill(done: int, total: int) -> None:
            if done > total // 2 and not killed:
                killed.append(done)
                source.kill()

        loader = MxTrtllmTargetLoader(name, registry, out, wait=10, progress=kill, settings=SETTINGS)
        with pytest.raises(RuntimeError, match=r"^Transfer failed with status [A-Z_]+$") as caught:
            loader.load(skip_build=True)
        assert isinstance(caught.value.__cause__, mx.ModelExpressError)
    assert loader.get_transfer_stats() == {"total_bytes": 0, "total_time": 0, "bandwidth_gbps": 0}
    assert not (out / "checkpoint").exists(), "nobody may take half of it for a checkpoint"
    with TrtllmSource(registry, folder, name, FAST) as source:
        again = MxTrtllmTargetLoader(name, registry, out, wait=10, source_id=source.source_id, settings=SETTINGS)
        wait_until(lambda: load_from_a_living_source(again))
    assert contents(out / "checkpoint") == contents(folder)
    assert again.get_transfer_stats()["total_bytes"] <= TOTAL - killed[0]


def load_from_a_living_source(loader: MxTrtllmTargetLoader) -> bool:
    """Load; False as long as the registry names only the source that was killed."""
    try:
        loader.load(skip_build=True)
    except RuntimeError:
        return False
    return True


def test_another_source_goes_on_where_one_was_killed(registry: str, name: str, folder: Path, tmp_path: Path) -> None:
    with (
        TrtllmSource(registry, folder, name, SLOW) as first,
        TrtllmSource(registry, folder, name, SLOW) as second,
    ):
        living = [first, second]

        def kill(done: int, total: int) -> None:
            if done > total // 2 and len(living) == 2:
                victim = next(source for source in living if source.read_ranks())
                living.remove(victim)
                victim.kill()

        loader = MxTrtllmTargetLoader(name, registry, tmp_path / "out", wait=10, progress=kill, settings=SETTINGS)
        loader.load(skip_build=True)
    assert len(living) == 1
    assert contents(tmp_path / "out" / "checkpoint") == contents(folder)


def test_a_target_that_is_killed_goes_on_where_it_was(registry: str, name: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with TrtllmSource(registry, folder, name, SLOW):
        with loading(registry, name, out) as process:
            wait_until(lambda: there(out, 0.5))
            process.kill()
            process.communicate(timeout=30)
        assert not (out / "checkpoint").exists()
        assert (out / partial_name("checkpoint")).exists()
        with loading(registry, name, out, "--json") as process:
            said, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    answer = json.loads(said)
    assert answer["path"] == str(out / "checkpoint")
    assert answer["total_bytes"] < 0.6 * TOTAL, "what was there did not travel again"
    assert contents(out / "checkpoint") == contents(folder)
    assert [path.name for path in out.iterdir()] == ["checkpoint"]


def test_what_an_interrupted_load_left_is_compared_with_what_the_source_has_now(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with TrtllmSource(registry, folder, name, SLOW), loading(registry, name, out) as process:
        wait_until(lambda: there(out, 0.5))
        process.kill()
        process.communicate(timeout=30)
    # Same names and shapes, other values: nothing of the old checkpoint may be among them, damaged bytes neither.
    other = write_checkpoint(tmp_path / "other", config_of(RANKS), lambda rank: big_rank(rank + 5, MEGABYTES))
    with TrtllmSource(registry, other, name, FAST) as source:
        loader = MxTrtllmTargetLoader(name, registry, out, wait=10, source_id=source.source_id, settings=SETTINGS)
        loader.load(skip_build=True)
    assert contents(out / "checkpoint") == contents(other)


def test_a_load_that_is_told_to_end_keeps_what_it_has(registry: str, name: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        TrtllmSource(registry, folder, name, SLOW),
        loading(registry, name, out) as process,
    ):
        wait_until(lambda: there(out, 0.25))
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert [path.name for path in out.iterdir()] == [partial_name("checkpoint")]


def test_a_load_that_is_told_to_end_does_not_wait_for_a_source_that_stands_still(
    registry: str, name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MX_STALL_TIMEOUT", "300")
    out = tmp_path / "out"
    with (
        TrtllmSource(registry, folder, name, SLOW) as source,
        loading(registry, name, out) as process,
    ):
        wait_until(lambda: there(out, 0.25))
        source.process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert [path.name for path in out.iterdir()] == [partial_name("checkpoint")]


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    out = tmp_path / "out"
    with TrtllmSource(registry, folder, name, FAST):
        ended = run(
            *("trtllm", "load", "--name", name, "--out", out, "--registry", registry, "--skip-build"),
            preexec=limit_files,
        )
    assert ended.returncode == 1
    assert "needs" in ended.stderr
    assert "free space" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(out.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(registry: str, name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with TrtllmSource(registry, folder, name, FAST):
        loader = MxTrtllmTargetLoader(name, registry, tmp_path / "file" / "out", wait=10, settings=SETTINGS)
        with pytest.raises(CheckpointError, match="choose another folder"):
            loader.load(skip_build=True)


def test_memory_stays_flat(registry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MX_CHUNK_BYTES", str(1 << 20))  # of both sides; some chunks of each rank are on their way
    monkeypatch.setenv("MX_WORKER_GRPC_PORT", "0")
    big = write_checkpoint(tmp_path / "source", config_of(RANKS), lambda rank: big_rank(rank, 192))
    with (
        TrtllmSource(registry, big, name),
        TrtllmTarget(registry, name, tmp_path / "out") as process,
    ):
        process.start()
        taken = process.report()["peak"]
    assert taken < RANKS * 192 << 20 >> 1, "half of what was received, the mapped files included"


def lying_source(registry: str, name: str, ranks: Mapping[int, mx.Worker], rank0_files: dict[str, bytes]) -> None:
    """Publish one tensor a rank, and whatever files are given as those of rank 0."""
    layout = {"trtllm_weight_layout": "checkpoint", "trtllm_world_size": str(len(ranks))}
    identity = SourceIdentity(model_name=name, backend_framework=BackendFramework.TRT_LLM, extra_parameters=layout)
    for rank, worker in ranks.items():
        material = make_material(1, identity=identity, rank=rank, files=rank0_files)
        assert worker.publish(material).wait_ready(10)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"{}"},
        {"config.json": b"{}", header_name(0): b"{}"},
        {"config.json": b"{}", header_name(0): b'{"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}'},
        {"config.json": b"{}", header_name(0): b'{"w": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}'},
        {
            "config.json": b"{}",
            header_name(0): b'{"tensor.0": {"dtype": "F16", "shape": [32], "data_offsets": [0, 64]}}',
        },
        {
            "config.json": b"{}",
            header_name(0): b'{"tensor.0": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}}',
        },
        {header_name(0): b'{"tensor.0": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}'},
    ],
    ids=["no header", "no tensor", "fewer bytes", "another name", "another dtype", "another shape", "no configuration"],
)
def test_a_source_whose_files_and_tensors_differ_is_refused(
    registry: str, name: str, tmp_path: Path, files: dict[str, bytes]
) -> None:
    with mx.Worker(registry, settings=SETTINGS) as worker:
        lying_source(registry, name, {0: worker}, files)
        loader = MxTrtllmTargetLoader(name, registry, tmp_path / "out", wait=10, settings=SETTINGS)
        with pytest.raises(RuntimeError, match="Transfer failed with status MANIFEST_INVALID"):
            loader.load(skip_build=True)
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_lying_source_beside_a_good_one_ends_no_load(registry: str, name: str, tmp_path: Path) -> None:
    # Which source a rank asks first is up to chance: of eight ranks some ask the one that lies.
    folder = write_checkpoint(tmp_path / "source", config_of(8), plain_rank)
    header = b'{"tensor.1": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}'
    with MxTrtllmSourcePublisher(folder, name, registry, settings=SETTINGS) as good, ExitStack() as stack:
        assert good.wait_ready(10)
        with Client(registry) as client:
            ref = client.list_sources(model_name=name)[0]
            found = client.get(ref.source_id, ref.worker_id)
        assert found is not None
        for rank in range(8):
            lies = {"config.json": b"{}", header_name(rank): header}
            worker = stack.enter_context(mx.Worker(registry, settings=SETTINGS))
            assert worker.publish(make_material(1, identity=found[1], rank=rank, files=lies)).wait_ready(10)
        loader = MxTrtllmTargetLoader(name, registry, tmp_path / "out", wait=10, settings=SETTINGS)
        loader.load(skip_build=True)
    assert contents(tmp_path / "out" / "checkpoint") == contents(folder)


def test_a_checkpoint_that_cannot_be_put_there_is_found_out_before_anything_travels(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "checkpoint").write_text("a file")
    moved: list[int] = []

    def note(done: int, total: int) -> None:
        moved.append(done)

    loader = MxTrtllmTargetLoader(name, registry, out, wait=10, progress=note, settings=SETTINGS)
    with TrtllmSource(registry, folder, name, FAST), pytest.raises(CheckpointError, match="is a file; name a folder"):
        loader.load(skip_build=True)
    assert not moved
    assert [path.name for path in out.iterdir()] == ["checkpoint"]


def test_what_was_received_outlives_a_place_that_is_taken_meanwhile(
    registry: str, name: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def take(done: int, total: int) -> None:
        (out / "checkpoint").touch()

    with TrtllmSource(registry, folder, name, FAST):
        loader = MxTrtllmTargetLoader(name, registry, out, wait=10, progress=take, settings=SETTINGS)
        with pytest.raises(CheckpointError, match="is a file; name a folder"):
            loader.load(skip_build=True)
        (out / "checkpoint").unlink()
        again = MxTrtllmTargetLoader(name, registry, out, wait=10, settings=SETTINGS)
        again.load(skip_build=True)
    assert again.get_transfer_stats()["total_bytes"] == 0
    assert contents(out / "checkpoint") == contents(folder)


def test_the_command_takes_everything_from_the_environment(
    registry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin')}:/usr/bin:/bin")
    variables = {
        "MODEL_NAME": name,
        "CHECKPOINT_DIR": str(folder),
        "OUTPUT_DIR": str(tmp_path / "out"),
        "MODEL_EXPRESS_URL": f"http://{registry}",
        "TRTLLM_MAX_BATCH_SIZE": "32",
        "TRTLLM_MAX_INPUT_LEN": "64",
        "TRTLLM_MAX_SEQ_LEN": "128",
        "MX_WORKER_GRPC_PORT": "0",
    }
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    ready = tmp_path / "ready"
    with start("trtllm", "publish", "--ready-file", ready) as publishing:
        assert publishing.stdout is not None
        assert publishing.stdout.readline().startswith(f"serving 2 ranks of {name} as ")
        assert ready.exists()
        ended = run("trtllm", "load", "--option", "gemm_plugin=disable")
        publishing.send_signal(signal.SIGTERM)
        _, said = publishing.communicate(timeout=30)
    assert publishing.returncode == 0, said
    assert not ready.exists()
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == str(tmp_path / "out" / "engine")
    assert "this is a stand-in" in ended.stderr
    arguments = json.loads((tmp_path / "out" / "engine" / "arguments.json").read_text())
    named = ("gemm_plugin", "max_batch_size", "max_input_len", "max_seq_len")
    assert [arguments[name] for name in named] == ["disable", "32", "64", "128"]


def test_a_source_whose_token_is_wrong_is_not_ready_and_says_why(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(1), plain_rank)
    for side in ("registry", "source"):
        (tmp_path / f"{side}.token").write_text(f"of the {side}")
    monkeypatch.setenv("MX_AUTH_TOKEN_PATH", str(tmp_path / "source.token"))
    monkeypatch.setenv("MX_WORKER_GRPC_PORT", "0")
    ready, log = tmp_path / "ready", tmp_path / "log"
    with (
        RegistryProcess("memory", "127.0.0.1:0", "--token-file", str(tmp_path / "registry.token")) as guarded,
        log.open("wb") as errors,
        Child(
            "modelexpress.cli",
            *("trtllm", "publish", str(folder), "--name", name),
            *("--registry", guarded.address, "--ready-file", str(ready)),
            log=errors,
        ),
    ):
        wait_until(lambda: "trying on: " in log.read_text())
    assert "UNAUTHENTICATED" in log.read_text()
    assert not ready.exists()


def test_a_command_that_is_stopped_stops_its_builder(
    registry: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "source", config_of(2), plain_rank)
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin')}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN_ENDS", "slow")
    engine = tmp_path / "out" / "engine"
    with (
        TrtllmSource(registry, folder, name, FAST),
        start("trtllm", "load", "--name", name, "--out", tmp_path / "out", "--registry", registry) as loading,
    ):
        processes = await_processes(engine)
        loading.send_signal(signal.SIGTERM)
        _, errors = loading.communicate(timeout=30)
        assert loading.returncode == 128 + signal.SIGTERM, errors
        wait_until(lambda: all(ended(process) for process in processes))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint"]
    assert (tmp_path / "out" / "checkpoint" / "rank1.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("publish",), "CHECKPOINT_DIR"),
        (("publish", "somewhere"), "MODEL_NAME"),
        (("load",), "MODEL_NAME"),
        (("load", "--name", "m", "--option", "gemm_plugin"), "NAME=VALUE"),
    ],
)
def test_what_a_command_lacks_is_named(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MODEL_NAME", "CHECKPOINT_DIR"):
        monkeypatch.delenv(variable, raising=False)
    ended = run("trtllm", *arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
