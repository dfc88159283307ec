"""Variables are typed and validated in one place, and a malformed one never breaks anything."""

import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress import settings
from modelexpress.settings import Settings, has_effect, variables

NAMES = [variable for variable, *_ in variables()]
IGNORED = [variable for variable in NAMES if not has_effect(variable)]


def test_defaults_without_any_variable() -> None:
    assert Settings.read({}) == Settings()


def test_every_variable_is_documented_once() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert all(description for *_, description in variables())


@given(environ=st.dictionaries(st.sampled_from(NAMES), st.text(st.characters(exclude_characters="\0"))))
def test_nothing_breaks_reading(environ: dict[str, str]) -> None:
    logging.disable()
    try:
        assert isinstance(Settings.read(environ), Settings)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("MX_HEARTBEAT_INTERVAL_SECS", "soon", "heartbeat_interval"),
        ("MX_HEARTBEAT_TIMEOUT_SECS", "-1", "heartbeat_timeout"),
        ("MX_GC_TIMEOUT_SECS", "inf", "gc_timeout"),
        ("MX_GC_TIMEOUT_SECS", "nan", "gc_timeout"),
        ("MX_WORKER_GRPC_PORT", "65536", "worker_grpc_port"),
        ("MX_TRANSPORT", "pigeon", "transport"),
        ("MX_ARTIFACT_TRANSFER", "perhaps", "artifact_transfer"),
        ("MX_ARTIFACT_TRANSFER_CHUNK_SIZE", "64M", "artifact_chunk_bytes"),
        ("MX_ARTIFACT_TRANSFER_CHUNK_SIZE", "4294967297", "artifact_chunk_bytes"),
        ("MX_ARTIFACT_READY_TIMEOUT_SECS", "half an hour", "artifact_ready_timeout"),
        ("MX_ARTIFACT_READY_TIMEOUT_SECS", "-5", "artifact_ready_timeout"),
    ],
)
def test_a_malformed_value_is_named_and_the_default_used(
    variable: str, value: str, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    read = Settings.read({variable: value, "MX_TCP_STREAMS": "7"})
    assert getattr(read, field) == Settings.model_fields[field].default
    assert read.tcp_streams == 7
    assert variable in caplog.text
    assert value in caplog.text


@pytest.mark.parametrize("value", ["require", "REQUIRE", " Require "])
def test_the_signature_policy_is_read_whatever_its_case_and_the_space_around_it(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert Settings.read({"MX_ARTIFACT_POLICY": value}).artifact_policy == "require"
    assert Settings.read({"MX_ARTIFACT_POLICY": "Off "}).artifact_policy == "off"
    assert not caplog.text


@pytest.mark.parametrize("value", ["required", "on", "1", "no"])
def test_a_misspelt_signature_policy_refuses_what_is_not_signed(value: str, caplog: pytest.LogCaptureFixture) -> None:
    read = Settings.read({"MX_ARTIFACT_POLICY": value, "MX_TCP_STREAMS": "many"})
    assert (read.artifact_policy, read.tcp_streams) == ("require", 4)
    assert f"MX_ARTIFACT_POLICY={value!r} is not usable" in caplog.text
    assert "'require' is used" in caplog.text


def test_what_other_versions_read_is_accepted_and_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(settings, "_named", set[str]())
    given = dict.fromkeys(IGNORED, "value")
    assert len(given) == 9
    Settings.read(given | {"MX_WORKER_HOST": "here"})
    (said,) = caplog.messages
    assert all(variable in said for variable in IGNORED)
    assert "MX_WORKER_HOST" not in said
    Settings.read(given)
    assert len(caplog.messages) == 1


def test_the_names_that_fleets_use_are_known() -> None:
    fixed = """
    MX_SERVER_ADDRESS MODEL_EXPRESS_URL MX_P2P_METADATA MX_METADATA_PORT MX_WORKER_GRPC_PORT MX_WORKER_HOST
    MX_ARTIFACT_TRANSFER MX_ARTIFACT_BUNDLE_ROOT MX_ARTIFACT_READY_URL MX_ARTIFACT_READY_TIMEOUT_SECS
    MX_ARTIFACT_TRANSFER_CHUNK_SIZE MX_ARTIFACT_COMPILE_CONFIG_DIGEST MX_MODEL_REVISION MX_HEARTBEAT_INTERVAL_SECS
    MX_HEARTBEAT_TIMEOUT_SECS MX_REAPER_SCAN_INTERVAL_SECS MX_GC_TIMEOUT_SECS MX_TRANSFER_TIMEOUT
    MX_SOURCE_QUERY_TIMEOUT MX_POOL_REG MX_VMM_ARENA MX_P2P_SOURCE_SELECTOR MX_METADATA_BACKEND REDIS_URL
    MX_K8S_SERVICE_PATTERN MX_K8S_SOURCE_RETRIES MX_K8S_SOURCE_BACKOFF_SECONDS MX_MODEL_URI
    """
    assert set(fixed.split()) <= set(NAMES)


def test_an_empty_variable_is_not_set(caplog: pytest.LogCaptureFixture) -> None:
    assert Settings.read({"MX_GC_TIMEOUT_SECS": " "}) == Settings()
    assert not caplog.text


@pytest.mark.parametrize(
    ("environ", "registry"),
    [
        ({}, "localhost:8001"),
        ({"MX_SERVER_ADDRESS": "a:1"}, "a:1"),
        ({"MX_SERVER_ADDRESS": "a:1", "MODEL_EXPRESS_URL": "http://b:2/"}, "b:2"),
        ({"MODEL_EXPRESS_URL": " https://b:2 "}, "b:2"),
        ({"MX_SERVER_ADDRESS": "a:1", "MODEL_EXPRESS_URL": ""}, "a:1"),
    ],
)
def test_the_registry_of_the_environment(environ: dict[str, str], registry: str) -> None:
    assert Settings.read(environ).registry == registry


def test_the_process_environment_is_read_when_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert Settings.read() == Settings.read(dict(os.environ))
    monkeypatch.setenv("MX_TCP_STREAMS", "3")
    assert Settings.read().tcp_streams == 3
