"""The TLS files that the settings name encrypt `tcp`, and a file that cannot be used never means plain text."""

from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from modelexpress.errors import TransportUnavailable
from modelexpress.memory import HostArena
from modelexpress.settings import Settings
from modelexpress.transport import Run, Selection, available
from modelexpress.transport.tcp_descriptor import TcpDescriptor

TOKEN = "token"
NBYTES = 300_000

Fleet = Callable[..., Settings]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Return a function that makes the settings of a process whose certificate is for a name."""

    def make(name: str = "127.0.0.1", **other: str) -> Settings:
        authority = trustme.CA()
        issued = authority.issue_cert(name)
        paths = {kind: tmp_path / f"{kind}.{len(list(tmp_path.iterdir()))}.pem" for kind in ("ca", "cert", "key")}
        authority.cert_pem.write_to_path(str(paths["ca"]))
        issued.cert_chain_pems[0].write_to_path(str(paths["cert"]))
        issued.private_key_pem.write_to_path(str(paths["key"]))
        chosen = {f"tls_{kind}": str(path) for kind, path in paths.items()} | other
        return Settings.model_validate({"transport": "tcp"} | chosen)

    return make


def read(source: Settings, target: Settings) -> TcpDescriptor:
    """Let `target` read from `source`; return what the source said of itself."""
    with HostArena(NBYTES) as theirs, HostArena(NBYTES) as ours:
        theirs.region.view()[:] = bytes(range(250)) * (NBYTES // 250)
        (exporting,), (opening,) = available(source).transports, available(target).transports
        with exporting, opening:
            export = exporting.export([theirs.region])
            export.grant(TOKEN)
            with opening.open(export.descriptor, TOKEN) as reader:
                reader.read([Run(0, 0, ours.region.address, NBYTES)]).wait(10)
            assert ours.region.view() == theirs.region.view()
            return TcpDescriptor.parse(export.descriptor)


def test_nothing_is_encrypted_by_default() -> None:
    assert not read(Settings(transport="tcp"), Settings(transport="tcp")).tls


def test_a_fleet_with_certificates_encrypts(fleet: Fleet) -> None:
    settings = fleet()
    assert read(settings, settings).tls


def test_whoever_has_the_authority_alone_reads_both_kinds_of_sources(fleet: Fleet) -> None:
    equipped = fleet()
    target = Settings(transport="tcp", tls_ca=equipped.tls_ca)
    assert read(equipped, target).tls
    assert not read(target, target).tls


def test_the_environment_is_enough(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = fleet()
    for name in ("ca", "cert", "key"):
        monkeypatch.setenv(f"MX_TLS_{name.upper()}", getattr(settings, f"tls_{name}"))
    monkeypatch.setenv("MX_TRANSPORT", "tcp")
    assert read(Settings.read(), Settings.read()).tls


def test_a_target_that_does_not_know_the_authority_refuses(fleet: Fleet) -> None:
    with pytest.raises(TransportUnavailable, match="certificate verify failed"):
        read(fleet(), fleet())
    with pytest.raises(TransportUnavailable, match="the source encrypts"):
        read(fleet(), Settings(transport="tcp"))


def test_a_certificate_for_another_name_is_refused(fleet: Fleet) -> None:
    settings = fleet("another.example")
    with pytest.raises(TransportUnavailable, match="certificate verify failed"):
        read(settings, settings)


def reason(selection: Selection) -> str:
    assert [transport.name for transport in selection.transports] == ["local"]
    reasons = dict(selection.reasons)
    assert reasons["tcp"] == reasons["nixl"]
    return reasons["tcp"]


@pytest.mark.parametrize("missing", ["ca", "cert", "key"])
def test_a_file_that_is_missing_leaves_what_needs_no_encryption(fleet: Fleet, missing: str) -> None:
    settings = fleet(**{f"tls_{missing}": "/nowhere.pem"}).model_copy(update={"transport": "auto"})
    assert "/nowhere.pem" in reason(available(settings))


def test_a_key_without_its_certificate_is_named(fleet: Fleet) -> None:
    for missing in ("cert", "key"):
        settings = fleet(**{f"tls_{missing}": ""}).model_copy(update={"transport": "auto"})
        assert "MX_TLS_CERT and MX_TLS_KEY are set together" in reason(available(settings))


def test_a_key_under_a_password_is_refused_without_asking(fleet: Fleet) -> None:
    settings = fleet().model_copy(update={"transport": "auto"})
    path = Path(settings.tls_key)
    key = load_pem_private_key(path.read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, secret))
    assert "MX_TLS_KEY" in reason(available(settings))
