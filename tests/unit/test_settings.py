"""Variables are typed and validated in one place, and a malformed one never breaks anything."""

import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.settings import Settings, variables

NAMES = [variable for variable, *_ in variables()]


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
