"""Tokens, TLS and client certificates, between real processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelexpress.client import AsyncClient, Client
from modelexpress.errors import ConfigurationError, RegistryError, RegistryProtocolError, RegistryRefused
from modelexpress.wire.tls import ClientTls
from tests.support.registries import RegistryProcess

ANYWHERE = "0.0.0.0:0"


def local(address: str) -> str:
    """Return the address under which this host reaches a registry that listens everywhere."""
    return address.replace("0.0.0.0", "127.0.0.1")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("old-token\nnew-token\n", encoding="utf-8")
    return path


@pytest.fixture
def guarded(tokens: Path) -> Iterator[str]:
    with RegistryProcess("memory", ANYWHERE, "--token-file", str(tokens)) as registry:
        yield local(registry.address)


@pytest.mark.parametrize("token", ["old-token", "new-token"])
def test_each_accepted_token_opens(guarded: str, token: str) -> None:
    with Client(guarded, token=token) as client:
        assert client.list_sources() == []


@pytest.mark.parametrize("token", [None, "", "old", "old-token ", "wrong"])
def test_no_other_token_opens(guarded: str, token: str | None) -> None:
    with Client(guarded, token=token) as client, pytest.raises(RegistryRefused, match="token"):
        client.list_sources()


async def test_the_token_of_the_environment_is_read_for_each_call(
    guarded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = tmp_path / "mounted"
    monkeypatch.setenv("MX_AUTH_TOKEN_PATH", str(mounted))
    async with AsyncClient(guarded) as client:
        with pytest.raises(ConfigurationError, match="MX_AUTH_TOKEN_PATH"):
            await client.list_sources()
        mounted.write_text("wrong\n", encoding="utf-8")
        with pytest.raises(RegistryRefused):
            await client.list_sources()
        mounted.write_text("new-token\n", encoding="utf-8")
        assert await client.list_sources() == []


def test_probes_need_no_token(guarded: str) -> None:
    with grpc.insecure_channel(guarded) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True)
class Files:
    """PEM files of one authority, one server, one client."""

    ca: Path
    server: Path
    client: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    found = Files(folder / "ca.pem", folder / "server.pem", folder / "client.pem")
    authority.cert_pem.write_to_path(str(found.ca))
    for path, name in ((found.server, "127.0.0.1"), (found.client, "worker")):
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(path))
    return found


def test_tls_lets_those_in_who_know_the_authority(files: Files) -> None:
    arguments = ("--tls-cert", str(files.server), "--tls-key", str(files.server))
    with RegistryProcess("memory", ANYWHERE, *arguments) as registry:
        address = local(registry.address)
        with Client(address, tls=ClientTls(ca=files.ca)) as client:
            assert client.list_sources() == []
        with Client(address) as plain, pytest.raises(RegistryError):
            plain.list_sources()
        with Client(address, tls=ClientTls()) as stranger, pytest.raises(RegistryProtocolError, match="TLS"):
            stranger.list_sources()


def test_mutual_tls_asks_for_a_client_certificate(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    pem = str(files.server)
    arguments = ("--tls-cert", pem, "--tls-key", pem, "--tls-client-ca", str(files.ca))
    with RegistryProcess("memory", ANYWHERE, *arguments) as registry:
        address = local(registry.address)
        with Client(address, tls=ClientTls(ca=files.ca)) as anonymous, pytest.raises(RegistryError):
            anonymous.list_sources()
        monkeypatch.setenv("MX_TLS_CA", str(files.ca))
        monkeypatch.setenv("MX_TLS_CERT", str(files.client))
        monkeypatch.setenv("MX_TLS_KEY", str(files.client))
        with Client(address) as known:
            assert known.list_sources() == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    client = Client("127.0.0.1:1", tls=ClientTls(ca=tmp_path / "missing.pem"))
    with client, pytest.raises(ConfigurationError, match=r"missing\.pem"):
        client.list_sources()
