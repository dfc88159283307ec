"""A fleet whose workers have certificates: everything between them is encrypted, and strangers get nothing."""

from pathlib import Path

import pytest
import torch
import trustme

import modelexpress as mx
from modelexpress.errors import ModelExpressError
from tests.support.loading import load_into, new_identity
from tests.support.registries import RegistryProcess


def write_files(folder: Path, authority: trustme.CA) -> dict[str, str]:
    """Return the settings of a member of the fleet, by variable, with the files that they name."""
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    files = {"MX_TLS_CA": "ca.pem", "MX_TLS_CERT": "cert.pem", "MX_TLS_KEY": "key.pem"}
    return {variable: str(folder / name) for variable, name in files.items()}


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    variables = write_files(tmp_path, trustme.CA())
    for variable, path in variables.items():
        monkeypatch.setenv(variable, path)
    return variables


def registry_of(fleet: dict[str, str]) -> RegistryProcess:
    options = ("--tls-cert", fleet["MX_TLS_CERT"], "--tls-key", fleet["MX_TLS_KEY"])
    return RegistryProcess("memory", "127.0.0.1:0", *options, "--tls-client-ca", fleet["MX_TLS_CA"])


def own_settings() -> mx.Settings:
    return mx.Settings.read().model_copy(update={"transport": "tcp", "worker_grpc_port": 0})


def test_a_load_in_a_fleet_of_certificates(fleet: dict[str, str]) -> None:
    identity, source, target = new_identity(), {"w": torch.ones(100_000)}, {"w": torch.zeros(100_000)}
    with (
        registry_of(fleet) as process,
        mx.publish(source, identity, registry=process.address, settings=own_settings()) as publication,
    ):
        assert publication.wait_ready(10)
        report = load_into(target, identity, process.address, own_settings())
    assert torch.equal(target["w"], source["w"])
    assert report.transport == "tcp"


def test_a_stranger_gets_nothing(fleet: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, target = new_identity(), {"w": torch.zeros(100)}
    with (
        registry_of(fleet) as process,
        mx.publish({"w": torch.ones(100)}, identity, registry=process.address, settings=own_settings()) as publication,
    ):
        assert publication.wait_ready(10)
        (tmp_path / "other").mkdir()
        for variable, path in write_files(tmp_path / "other", trustme.CA()).items():
            monkeypatch.setenv(variable, path)
        settings = own_settings().model_copy(update={"source_query_timeout": 2.0})
        with pytest.raises(ModelExpressError):
            load_into(target, identity, process.address, settings)
    assert not target["w"].any()
