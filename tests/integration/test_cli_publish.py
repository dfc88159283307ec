"""`mx publish DIR`: a checkpoint served from memory until somebody says stop."""

import json
import signal
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modelexpress.cli.app import app
from modelexpress.client import Client
from modelexpress.errors import CheckpointError, IdentityError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import PeerClient
from modelexpress.wire.records import SourceStatus
from tests.support.commands import Publishing, run, start
from tests.support.materials import new_identity


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_it_serves_until_it_is_stopped_and_withdraws(registry: str, checkpoint: Path, number: signal.Signals) -> None:
    name = new_identity().model_name
    with Client(registry) as client:
        with Publishing(checkpoint, "--registry", registry, "--name", name, "--revision", "r7") as publishing:
            fields = publishing.fields
            (ref,) = client.list_sources(model_name=name, status=SourceStatus.READY)
            assert (ref.source_id, ref.worker_id) == (fields["source_id"], fields["worker_id"])
            found = client.get(ref.source_id, ref.worker_id)
            assert found is not None
            assert found[1] == SourceIdentity(model_name=name, dtype="bfloat16", revision="r7")
            with PeerClient(fields["endpoint"]) as peer:
                grant = peer.acquire(ref.source_id, ref.worker_id, "reader", "host")
                assert {file.path for file in grant.manifest.files} >= {"config.json", "tokenizer.json"}
            status, errors = publishing.stop(number)
        assert status == 0
        assert "Traceback" not in errors
        assert client.list_sources(model_name=name, status=SourceStatus.READY) == []


def test_a_whole_identity_can_be_given(registry: str, checkpoint: Path) -> None:
    given = {"model_name": new_identity().model_name, "dtype": "float8_e4m3fn", "mx_version": "1.0.0"}
    with Publishing(checkpoint, "--registry", registry, "--identity", json.dumps(given)) as publishing:
        assert publishing.fields["source_id"] == SourceIdentity(**given).source_id  # type: ignore[arg-type]
        assert publishing.fields["model_name"] == given["model_name"]


@pytest.mark.parametrize(
    ("identity", "message"),
    [("{", "no JSON"), ("[]", "JSON object"), ('{"colour": "red"}', "identities lack")],
)
def test_an_identity_that_is_none_is_a_mistake_in_the_command(checkpoint: Path, identity: str, message: str) -> None:
    ended = CliRunner().invoke(app, ["publish", str(checkpoint), "--identity", identity])
    assert ended.exit_code == 2
    assert message in " ".join(ended.stderr.split())


def test_an_identity_with_a_field_of_another_type_is_named(checkpoint: Path) -> None:
    ended = CliRunner().invoke(app, ["publish", str(checkpoint), "--identity", '{"dtype": 7}'])
    assert isinstance(ended.exception, IdentityError)
    assert "dtype" in str(ended.exception)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["publish", str(tmp_path / "missing")])
    assert isinstance(ended.exception, CheckpointError)
    assert "missing" in str(ended.exception)


def test_an_error_is_one_line_and_a_status(tmp_path: Path) -> None:
    ended = run("publish", tmp_path / "missing")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("mx: there is no checkpoint folder")
    assert ended.stderr.count("\n") == 1


def test_it_can_be_stopped_while_there_is_no_registry(checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
    with start("publish", checkpoint, "--json", "--registry", nowhere) as process:
        assert process.stderr is not None
        assert any("cannot be told" in line for line in process.stderr)
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
