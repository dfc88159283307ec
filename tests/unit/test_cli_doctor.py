"""`mx doctor`: what is wrong is found, and each finding says what to do."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modelexpress.cli.checkup_machine import check_arena, check_machine, check_packages
from modelexpress.cli.checkup_network import check_registry, check_settings, check_transports, check_worker_port
from modelexpress.cli.doctor import examine
from modelexpress.cli.findings import Finding, State
from modelexpress.cli.machine import Machine, container_limit
from modelexpress.settings import Settings


def only(findings: list[Finding], name: str) -> Finding:
    (found,) = (finding for finding in findings if finding.name == name)
    return found


def run_doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelexpress.cli", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_the_command_ends_well_where_loads_work_and_prints_one_object(registry: str) -> None:
    done = run_doctor("--json", MODEL_EXPRESS_URL=registry, MX_CHUNK_BYTES="many")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["works"] is True
    assert said["settings"]["registry"] == registry
    assert said["settings"]["chunk_bytes"] == Settings().chunk_bytes
    states = {finding["name"]: finding["state"] for finding in said["findings"]}
    assert states["local"] == states["tcp"] == states[registry] == "works"
    assert states["MX_CHUNK_BYTES"] == "limited"


def test_the_table_names_what_is_wrong_and_what_to_do() -> None:
    done = run_doctor("--registry", "127.0.0.1:1", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "does not answer" in done.stdout
    assert "→ start one with `mx serve`" in done.stdout


def test_whatever_does_not_work_has_a_remedy_and_nothing_else_has() -> None:
    for finding in examine(Settings(registry="127.0.0.1:1")):
        assert bool(finding.remedy) == (finding.state is not State.WORKS), finding


def test_the_registry_is_timed(registry: str) -> None:
    finding = check_registry(Settings(registry=registry))
    assert finding.state is State.WORKS
    assert "ms" in finding.detail


def test_something_else_at_the_registrys_address_is_told_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        finding = check_registry(Settings(registry=f"127.0.0.1:{deaf.getsockname()[1]}"))
    assert finding.state is State.LIMITED


def test_a_taken_worker_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert check_worker_port(Settings(worker_grpc_port=port)).state is State.LIMITED
    assert check_worker_port(Settings(worker_grpc_port=0)).state is State.WORKS


def test_a_transport_that_is_not_wanted_says_so() -> None:
    findings = list(check_transports(Settings(transport="tcp")))
    assert only(findings, "tcp").state is State.WORKS
    assert "MX_TRANSPORT" in only(findings, "local").detail


@pytest.mark.parametrize("value", ["0", "65", "three", "-1"])
def test_a_malformed_setting_names_its_value_and_default(value: str) -> None:
    finding = only(list(check_settings({"MX_TCP_STREAMS": value})), "MX_TCP_STREAMS")
    assert finding.state is State.LIMITED
    assert repr(value) in finding.detail
    assert "'4'" in finding.detail


def test_a_misspelt_setting_is_told_what_it_may_mean() -> None:
    finding = only(list(check_settings({"MX_TCP_STREAM": "4"})), "MX_TCP_STREAM")
    assert finding.state is State.LIMITED
    assert "MX_TCP_STREAMS" in finding.remedy


def test_good_and_absent_settings_are_well() -> None:
    assert only(list(check_settings({"MX_TCP_STREAMS": "2"})), "MX_TCP_STREAMS").state is State.WORKS
    assert [finding.state for finding in check_settings({"PATH": "somewhere"})] == [State.WORKS]


def test_every_package_that_is_needed_is_here() -> None:
    assert not [finding for finding in check_packages() if finding.state is State.BROKEN]
    assert check_arena().state is State.WORKS
    assert {finding.area for finding in check_machine()} == {"python", "digest", "machine", "memory"}


@pytest.mark.parametrize(("text", "limit"), [("1048576\n", 1 << 20), ("max\n", None), (None, None)])
def test_the_limit_of_a_container_is_read(tmp_path: Path, text: str | None, limit: int | None) -> None:
    if text is not None:
        (tmp_path / "memory.max").write_text(text)
    assert container_limit(tmp_path) == limit


def test_a_machine_describes_itself() -> None:
    machine = Machine.this()
    assert machine.cores > 0
    assert machine.memory_bytes > 1 << 20
    assert machine.python in str(machine)
