"""The transport `tcp` does what every transport must do when it encrypts, too."""

import shutil
import subprocess
from pathlib import Path

import pytest

from modelexpress.errors import TransportUnavailable
from tests.conformance.test_transport_tcp import TestTcp as _Plain
from tests.support.transport_source import TOKEN, Exported, make

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl makes the certificate")


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=test"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *extension], cwd=folder, check=True, capture_output=True)
    return folder


class TestTcpWithTls(_Plain):
    @pytest.fixture
    def certificate(self, self_signed: Path) -> Path:
        return self_signed

    def test_without_a_context_the_reason_is_named(self, big: Exported) -> None:
        with make("tcp") as plain, pytest.raises(TransportUnavailable, match="client_tls"):
            plain.open(big.descriptor, TOKEN)
