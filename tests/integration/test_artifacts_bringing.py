"""Bringing caches before an engine initialises: it never raises, it says why, and it reports what was used."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from modelexpress.artifacts.lifecycle import bring
from modelexpress.artifacts.report import Outcome
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from tests.support.artifact_source import ArtifactSource
from tests.support.caches import KINDS, PlainKind, cache_files, read_cache
from tests.support.materials import new_identity

PLAIN, OTHER = KINDS["plain"], KINDS["other"]


@pytest.fixture
def identity() -> SourceIdentity:
    return new_identity()


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"TEST_CACHE": str(tmp_path / "cache")}


def settings(registry: str, **others: object) -> Settings:
    return Settings.model_validate({"registry": registry, "artifact_transfer": True} | others)


def test_what_peers_have_is_brought_and_the_rest_is_said(
    registry: str, identity: SourceIdentity, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with (
        ArtifactSource(registry, identity, 4, 1024),
        bring(identity, [OTHER, PLAIN], settings(registry), environ=environ) as brought,
    ):
        other, plain = brought.caches
    assert other.report is None
    assert "no ready source" in other.reason
    assert plain.report is not None
    assert plain.report.outcome is Outcome.INSTALLED
    assert read_cache(Path(environ["TEST_CACHE"])) == cache_files(4, 1024)
    assert "no peer has these caches yet: other (" in caplog.text
    assert "plain: 5 of 5 files" in caplog.text


def test_use_is_reported_and_a_warning_follows_when_nothing_is_used(
    registry: str, identity: SourceIdentity, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ArtifactSource(registry, identity, 4, 1024):
        brought = bring(identity, [PLAIN], settings(registry), environ=environ)
    assert brought.say_usage().used == 0
    assert "none of the 5 files that a peer compiled was used" in caplog.text
    for path in list(cache_files(4, 1024))[:3]:
        (Path(environ["TEST_CACHE"]) / path).read_bytes()
    caplog.clear()
    assert brought.say_usage().used == 3
    assert "3 of 5 installed files were used" in caplog.text
    brought.close()
    assert brought.usage() == {}


@pytest.mark.parametrize(
    ("others", "said"),
    [({"artifact_transfer": False}, "MX_ARTIFACT_TRANSFER is not 1"), ({"p2p_metadata": False}, "MX_P2P_METADATA=0")],
)
def test_it_is_opted_into_and_needs_metadata(
    registry: str,
    identity: SourceIdentity,
    environ: dict[str, str],
    others: dict[str, object],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    brought = bring(identity, [PLAIN], settings(registry, **others), environ=environ)
    assert brought.caches == ()
    assert said in brought.reason
    assert said in caplog.text


def test_a_registry_that_is_not_there_is_asked_once(
    identity: SourceIdentity, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings("127.0.0.1:9", source_query_timeout=0.5)
    started = time.monotonic()
    brought = bring(identity, [PLAIN, OTHER, PLAIN, OTHER], chosen, environ=environ)
    assert time.monotonic() - started < 10
    assert all("127.0.0.1:9" in cache.reason for cache in brought.caches)
    assert caplog.text.count("no caches of compiled kernels can be looked for") == 1


class Broken(PlainKind):
    """A kind with a mistake in it."""

    name = "broken"

    def root(self, environ: Mapping[str, str]) -> Path:
        raise RuntimeError("a mistake")


def test_a_kind_with_a_mistake_leaves_the_others_alone(
    registry: str, identity: SourceIdentity, environ: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        ArtifactSource(registry, identity, 4, 1024),
        bring(identity, [Broken(), PLAIN], settings(registry), environ=environ) as brought,
    ):
        broken, plain = brought.caches
    assert broken.reason == "a mistake"
    assert plain.report is not None
    assert "broken: not brought" in caplog.text


def test_keys_that_cannot_be_read_stop_the_transfer_and_not_the_engine(
    registry: str, identity: SourceIdentity, environ: dict[str, str], tmp_path: Path
) -> None:
    chosen = settings(registry, artifact_trusted_keys=str(tmp_path / "none"), artifact_policy="require")
    brought = bring(identity, [PLAIN], chosen, environ=environ)
    assert brought.caches == ()
    assert brought.reason


def test_a_root_that_cannot_be_written_is_said(
    registry: str, identity: SourceIdentity, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        ArtifactSource(registry, identity, 4, 1024),
        bring(identity, [PLAIN], settings(registry), environ={"TEST_CACHE": str(tmp_path / "file/c")}) as brought,
    ):
        (cache,) = brought.caches
    assert cache.report is None
    assert "plain: not brought" in caplog.text
