"""`mx doctor`: what is wrong is found, and each finding says what to do."""

import ctypes
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from modelexpress.cli.checkup_links import (
    check_gpu_links,
    check_links,
    check_rdma,
    check_ucx,
    check_ways,
    network_interfaces,
)
from modelexpress.cli.checkup_machine import (
    check_accelerators,
    check_arena,
    check_device_arena,
    check_device_digest,
    check_machine,
    check_packages,
)
from modelexpress.cli.checkup_network import check_registry, check_settings, check_worker_port
from modelexpress.cli.checkup_transports import Ways, check_transports
from modelexpress.cli.doctor import examine
from modelexpress.cli.findings import Finding, State
from modelexpress.cli.machine import Machine, container_limit
from modelexpress.cli.nvml import Gpu, Link, Survey, survey
from modelexpress.cli.ucx_probe import Ucx, ask
from modelexpress.settings import Settings
from modelexpress.transport.nixl_cards import Card
from modelexpress.transport.nixl_library import missing


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
    findings = list(check_transports(Ways.find(Settings(transport="tcp"))))
    assert only(findings, "tcp").state is State.WORKS
    assert "MX_TRANSPORT" in only(findings, "local").detail


@pytest.mark.parametrize("value", ["0", "65", "three", "-1"])
def test_a_malformed_setting_names_its_value_and_default(value: str) -> None:
    finding = only(list(check_settings({"MX_TCP_STREAMS": value})), "MX_TCP_STREAMS")
    assert finding.state is State.LIMITED
    assert repr(value) in finding.detail
    assert "the default 4" in finding.detail


def test_a_misspelt_setting_is_told_what_it_may_mean() -> None:
    finding = only(list(check_settings({"MX_TCP_STREAM": "4"})), "MX_TCP_STREAM")
    assert finding.state is State.LIMITED
    assert "MX_TCP_STREAMS" in finding.remedy


def test_a_misspelt_signature_policy_is_the_strictest() -> None:
    finding = only(list(check_settings({"MX_ARTIFACT_POLICY": "required"})), "MX_ARTIFACT_POLICY")
    assert finding.state is State.LIMITED
    assert "'require' is used" in finding.detail


def test_a_setting_of_other_versions_is_said_to_be_without_effect() -> None:
    finding = only(list(check_settings({"MX_POOL_REG": "1"})), "MX_POOL_REG")
    assert finding.state is State.LIMITED
    assert "without effect" in finding.detail


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


GPUS = Survey("580.1", (Gpu("NVIDIA H200", 150 << 30, 18),) * 2, ((0, 1, Link.NVLINK),))
UCX = Ucx("1.23.0", ("cma", "cuda_cpy", "cuda_ipc", "tcp"))
CARD = Card("mlx5_0", "mlx5_core", 50e9)


def test_gpus_are_named_with_what_torch_can_do_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = check_accelerators(GPUS)
    assert "2 × NVIDIA H200 (150 GiB), of which CUDA_VISIBLE_DEVICES=1 shows some, driver 580.1" in found.detail
    assert "torch" in found.detail


def test_what_gpu_memory_needs_is_looked_for_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    names = ("triton", "modelexpress.memory._arena")
    monkeypatch.setattr("modelexpress.cli.checkup_machine.survey", lambda: GPUS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in names else find(name))
    found = list(check_machine())
    digests = only(found, "digests on GPUs")
    assert digests.state is State.LIMITED
    assert "modelexpress[cuda]" in digests.remedy
    assert only(found, "arena on GPUs").state is State.LIMITED
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("os"))
    assert check_device_digest().state is check_device_arena().state is State.WORKS


@pytest.mark.parametrize("link", list(Link))
def test_links_between_gpus_are_summed_up(link: Link) -> None:
    pairs = ((0, 1, Link.NVLINK), (0, 2, link), (1, 2, link))
    found = check_gpu_links(Survey("580.1", GPUS.gpus + GPUS.gpus[:1], pairs))
    assert ("all" if link is Link.NVLINK else f"NVLink: 0–1; {link.value}: 0–2, 1–2") in found.detail
    assert (found.state is State.LIMITED) == (link is Link.NONE)


def port(folder: Path, state: str) -> None:
    folder.mkdir(parents=True)
    (folder / "state").write_text(state)
    (folder / "rate").write_text("400 Gb/sec (4X NDR)\n")


def test_rdma_cards_are_listed_with_their_rates(tmp_path: Path) -> None:
    assert check_rdma(tmp_path / "none").detail == "none"
    port(tmp_path / "mlx5_1/ports/1", "1: DOWN\n")
    assert check_rdma(tmp_path).state is State.LIMITED
    port(tmp_path / "mlx5_0/ports/1", "4: ACTIVE\n")
    found = check_rdma(tmp_path)
    assert found.state is State.WORKS
    assert "mlx5_0" in found.detail
    assert "400 Gbit/s, mlx5_1 is down" in found.detail


def test_interfaces_that_are_up_are_listed_with_their_speed(tmp_path: Path) -> None:
    assert network_interfaces(tmp_path / "none") == {}
    for name, state, speed in (("eth0", "up", "25000"), ("eth1", "down", "25000"), ("eth2", "up", "-1")):
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "operstate").write_text(f"{state}\n")
        (tmp_path / name / "speed").write_text(f"{speed}\n")
    (tmp_path / "lo").mkdir()
    assert network_interfaces(tmp_path) == {"eth0": 25.0, "eth2": None}


def test_a_nixl_that_cannot_reach_gpus_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_ucx(UCX, GPUS).state is State.WORKS
    assert check_ucx(Ucx("1.23.0", ("tcp",)), GPUS).state is State.LIMITED
    assert check_ucx(Ucx("1.23.0", ("tcp",)), None).state is State.WORKS
    assert "it broke" in check_ucx("it broke", None).detail
    assert "libfabric" not in check_ucx(UCX, GPUS).detail, "its plugin alone says nothing"
    assert "libfabric starts, too" in check_ucx(replace(UCX, libfabric=True), GPUS).detail
    failed = check_ucx(replace(UCX, fault="unset it"), GPUS)
    assert (failed.state, "unset it" in failed.detail) == (State.LIMITED, True)
    monkeypatch.setenv("UCX_TLS", "tcp")
    assert "UCX_TLS=tcp restricts" in check_ucx(UCX, None).detail


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_ucx_is_asked_in_a_process_of_its_own() -> None:
    found = ask()
    assert isinstance(found, Ucx), found
    assert not found.fault
    assert {"tcp", "posix"} <= set(found.components)


@pytest.mark.parametrize(
    ("transport", "gpus", "cards", "within", "between"),
    [
        ("auto", None, (), "local: the kernel", "tcp"),
        ("auto", GPUS, (), "over NVLink", "tcp"),
        ("nixl", GPUS, (CARD,), "nixl, as MX_TRANSPORT asks", "nixl by UCX over mlx5_0 (mlx5_core) 400 Gbit/s, to and"),
        ("nixl", None, (Card("efa_0", "efa", 12.5e9),), "nixl, as MX_TRANSPORT asks", "nixl by libfabric"),
        ("local", None, (), "local: the kernel", "nothing can be loaded"),
    ],
)
def test_a_sentence_says_what_a_load_would_use(
    monkeypatch: pytest.MonkeyPatch,
    transport: Literal["auto", "local", "nixl"],
    gpus: Survey | None,
    cards: tuple[Card, ...],
    within: str,
    between: str,
) -> None:
    if transport == "nixl" and missing() is not None:
        pytest.skip(str(missing()))
    monkeypatch.setattr("modelexpress.cli.checkup_transports.ask", lambda: UCX)
    found = list(check_ways(Ways.find(Settings(transport=transport)), gpus, cards))
    assert within in only(found, "within this host").detail
    assert between in only(found, "between hosts").detail


@pytest.mark.parametrize(
    ("ways", "within"),
    [
        (Ways(("tcp",), (("local", "no place for its socket"),)), "tcp, as `local` cannot be used: no place for"),
        (Ways(("tcp", "local"), ()), "tcp, as MX_TRANSPORT_FIRST asks for it"),
    ],
)
def test_it_is_said_why_local_is_not_used(ways: Ways, within: str) -> None:
    assert within in only(list(check_ways(ways, None, ())), "within this host").detail


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("UCX_RCACHE_ENABLE", "y", "UCX_RCACHE_ENABLE is set"),
        ("UCX_TLS", "cma", "must contain tcp"),
        ("UCX_TLS", "tcp", "neither RDMA nor shared memory leads"),
    ],
)
def test_a_nixl_that_starts_nothing_or_reads_nothing_is_not_said_to_work(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    ways = Ways.find(Settings(transport="nixl"))
    found = list(check_transports(ways))
    assert said in only(found, "nixl").detail
    assert only(found, "any").state is State.BROKEN
    assert said in only(list(check_links(ways)), "NIXL").detail


def test_everything_about_links_is_said_on_any_machine() -> None:
    names = {finding.name for finding in check_links(Ways.find(Settings()))}
    assert {"RDMA cards", "network", "within this host", "between hosts"} <= names


class NvmlDouble:
    """NVIDIA's management library with two GPUs that are linked; `silent` are functions that answer with an error."""

    def __init__(self, *silent: str) -> None:
        self._silent = silent
        self.running = False

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *arguments: 3 if name in self._silent else self._answer(name, *arguments)

    def _answer(self, name: str, *arguments: Any) -> int:
        if name in ("nvmlInit_v2", "nvmlShutdown"):
            self.running = name == "nvmlInit_v2"
            return 0
        assert self.running
        if name in ("nvmlDeviceGetName", "nvmlSystemGetDriverVersion"):
            arguments[-2].value = b"H200" if name == "nvmlDeviceGetName" else b"580.1"
        elif name == "nvmlDeviceGetMemoryInfo":
            arguments[-1]._obj.total = 5 << 30
        elif name == "nvmlDeviceGetNvLinkState":
            arguments[-1]._obj.value = int(arguments[1].value < 4)
        else:
            arguments[-1]._obj.value = {"nvmlDeviceGetCount_v2": 2, "nvmlDeviceGetP2PStatus": 0}.get(name, 7)
        return 0


@pytest.mark.parametrize(
    ("silent", "links"),
    [
        ((), ((0, 1, Link.NVLINK),)),
        (("nvmlDeviceGetP2PStatus",), ((0, 1, Link.UNKNOWN),)),
        (("nvmlInit_v2",), None),
        (("nvmlDeviceGetHandleByIndex_v2",), None),
    ],
)
def test_what_the_management_library_says_is_understood(
    monkeypatch: pytest.MonkeyPatch, silent: tuple[str, ...], links: object
) -> None:
    double = NvmlDouble(*silent)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: double)
    found = survey()
    assert not double.running
    assert (found.links if found else None) == links
    if found:
        assert found.driver == "580.1"
        assert found.gpus == (Gpu("H200", 5 << 30, 4),) * 2
