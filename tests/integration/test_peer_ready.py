"""Readiness against real HTTP servers: what counts as ready, what is refused, and when the waiting ends."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from modelexpress.errors import ConfigurationError
from modelexpress.peer.ready import UrlProbe, check_readiness_url, wait_until_ready
from tests.support.engine_server import EngineServer


@pytest.fixture
def engine() -> Iterator[EngineServer]:
    with EngineServer() as engine:
        yield engine


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/hostname",
        "ftp://localhost/health",
        "data:text/plain,ready",
        "localhost:8000/health",
        "http://",
        "http:///health",
        "http://localhost:99999/",
        "http://[::1/",
        "",
    ],
)
def test_only_http_and_https_can_tell_readiness(url: str) -> None:
    with pytest.raises(ConfigurationError, match="MX_ARTIFACT_READY_URL="):
        check_readiness_url(url)


@pytest.mark.parametrize("url", ["http://localhost:8000/health", "HTTPS://engine/", "http://[::1]:80/v1/models"])
def test_http_and_https_urls_are_taken(url: str) -> None:
    UrlProbe(url)


@pytest.mark.parametrize(("status", "ready"), [(200, True), (204, True), (301, False), (404, False), (503, False)])
def test_any_answer_of_success_means_ready(engine: EngineServer, status: int, ready: bool) -> None:
    engine.status = status
    reason = UrlProbe(engine.url)()
    assert (reason == "") == ready
    assert ready or str(status) in reason


def test_a_redirect_within_http_is_followed(engine: EngineServer) -> None:
    engine.status, engine.location = 307, "/ready"
    with EngineServer(200) as other:
        engine.location = other.url
        assert UrlProbe(engine.url)() == ""


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://localhost/x", "data:text/plain,ready"])
def test_a_redirect_to_another_scheme_is_refused(engine: EngineServer, location: str) -> None:
    engine.status, engine.location = 302, location
    reason = UrlProbe(engine.url)()
    assert reason
    assert f"'{location}'" in reason


def test_a_redirect_in_a_circle_ends(engine: EngineServer) -> None:
    engine.status, engine.location = 302, engine.url
    assert "302" in UrlProbe(engine.url)()


def test_https_is_asked_with_its_certificate_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    with EngineServer(200, tls=context) as engine:
        assert "does not answer" in UrlProbe(engine.url)()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert UrlProbe(engine.url)() == ""


def test_the_proxy_of_the_environment_is_not_asked(engine: EngineServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    engine.status = 200
    assert UrlProbe(engine.url)() == ""


def test_a_server_that_says_nothing_is_not_waited_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        assert "does not answer" in UrlProbe(f"http://127.0.0.1:{mute.getsockname()[1]}/")()
        assert time.monotonic() - started < 20


def test_a_server_that_was_stopped_does_not_look_alive(engine: EngineServer) -> None:
    with EngineServer(200) as stopped:
        probe = UrlProbe(stopped.url)
        assert probe() == ""
    assert "does not answer" in probe()


def test_waiting_ends_when_the_engine_is_ready(engine: EngineServer) -> None:
    def become_ready() -> None:
        engine.wait_asked(2)
        engine.status = 200

    changing = threading.Thread(target=become_ready)
    changing.start()
    assert wait_until_ready(UrlProbe(engine.url), 30, threading.Event()) == ""
    changing.join()
    assert engine.asked >= 3


def test_waiting_gives_up_at_the_timeout_and_says_what_was_answered(engine: EngineServer) -> None:
    reason = wait_until_ready(UrlProbe(engine.url), 0.3, threading.Event())
    assert "not ready after 0.3 s (MX_ARTIFACT_READY_TIMEOUT_SECS)" in reason
    assert "answered 503" in reason
    assert engine.asked >= 2


def test_waiting_can_be_stopped_from_another_thread(engine: EngineServer) -> None:
    stop = threading.Event()
    said: list[str] = []
    waiting = threading.Thread(target=lambda: said.append(wait_until_ready(UrlProbe(engine.url), 1000, stop)))
    waiting.start()
    engine.wait_asked(1)
    stop.set()
    waiting.join(20)
    assert said == ["it was stopped before the engine was ready"]
