"""Which addresses need protection, and which tokens are accepted."""

from pathlib import Path

import pytest

from modelexpress.errors import ConfigurationError
from modelexpress.registry.auth import is_loopback, read_tokens, require_protection


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/run/mx.sock"])
def test_loopback_needs_no_protection(listen: str) -> None:
    assert is_loopback(listen)
    require_protection(listen, token=False, tls=False, insecure=False)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.com:1", "localhost.example.com:1"])
def test_other_addresses_need_protection(listen: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--token-file.*--tls-cert.*--insecure"):
        require_protection(listen, token=False, tls=False, insecure=False)
    require_protection(listen, token=True, tls=False, insecure=False)
    require_protection(listen, token=False, tls=True, insecure=False)
    require_protection(listen, token=False, tls=False, insecure=True)


def test_one_token_a_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("first\n\n second \n", encoding="utf-8")
    assert read_tokens(path) == ("first", "second")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_useless_token_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="tokens"):
        read_tokens(path)
    with pytest.raises(ConfigurationError, match="missing"):
        read_tokens(tmp_path / "missing")
