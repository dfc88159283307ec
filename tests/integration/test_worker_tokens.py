"""Worker servers that ask for the fleet's bearer token: whoever lacks it gets nothing."""

from pathlib import Path

import pytest
import torch

import modelexpress as mx
from modelexpress.errors import PeerError
from tests.support.loading import SMALL, load_into, new_identity
from tests.support.registries import RegistryProcess


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "token"
    path.write_text("a secret of the fleet\n".replace(" ", "-"))
    monkeypatch.setenv("MX_AUTH_TOKEN_PATH", str(path))
    return path


def test_the_token_opens_registry_and_worker(token_file: Path) -> None:
    settings = SMALL.model_copy(update={"auth_token_path": str(token_file)})
    identity, source, target = new_identity(), {"w": torch.ones(100)}, {"w": torch.zeros(100)}
    with (
        RegistryProcess("memory", "127.0.0.1:0", "--token-file", str(token_file)) as process,
        mx.publish(source, identity, registry=process.address, settings=settings) as publication,
    ):
        assert publication.wait_ready(10)
        load_into(target, identity, process.address, settings)
    assert torch.equal(target["w"], source["w"])


@pytest.mark.parametrize("own", ["", "another-secret"])
def test_without_it_a_worker_refuses(
    registry: str, token_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str
) -> None:
    settings = SMALL.model_copy(update={"auth_token_path": str(token_file)})
    identity, target = new_identity(), {"w": torch.zeros(100)}
    with mx.publish({"w": torch.ones(100)}, identity, registry=registry, settings=settings) as publication:
        assert publication.wait_ready(10)
        (tmp_path / "own").write_text(own)
        monkeypatch.setenv("MX_AUTH_TOKEN_PATH", str(tmp_path / "own") if own else "")
        with pytest.raises(PeerError, match="MX_AUTH_TOKEN_PATH"):
            load_into(target, identity, registry, SMALL)
    assert not target["w"].any()
