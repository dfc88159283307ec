"""Files with Ed25519 keys: one with a private key for who signs, one with a list of public keys for who checks."""

import base64
import binascii
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelexpress.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_BYTES = 32
_LARGEST = 1 << 20
_NEED = "signatures need the package cryptography, which is not installed: pip install 'modelexpress[artifacts]'"


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys whose signatures count, each with what the list says about it.

    Args:
        keys: Comments by raw public keys of 32 bytes.
    """

    keys: dict[bytes, str]

    @classmethod
    def from_file(cls, path: Path) -> "TrustedKeys":
        """Return the keys that a file lists: one a line, base64, then a space and a comment.

        Empty lines, and lines that begin with `#`, are passed over.

        Raises:
            ConfigurationError: The file cannot be read, or a line is no key.
        """
        keys = {}
        for number, line in enumerate(_read(path, private=False).decode("utf-8", "replace").splitlines(), start=1):
            text = line.strip()
            if text and not text.startswith("#"):
                encoded, _, comment = text.partition(" ")
                keys[_decoded(encoded, f"line {number} of {path}")] = comment.strip()
        return cls(keys)


def new_private_key(path: Path) -> str:
    """Make a key pair, write its private key into a new file that this user alone can read, return the public one.

    Raises:
        ConfigurationError: The file is there already, or cannot be written.
    """
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ModuleNotFoundError as error:
        raise ConfigurationError(_NEED) from error
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"no key can be written to {path}: {error.strerror}; name another file") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    return encoded(key.public_key().public_bytes_raw())


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Return the private key in a file: PKCS8 in PEM, as `mx keys new` and OpenSSL write it.

    Raises:
        ConfigurationError: The file cannot be read, can be read by others, or holds no Ed25519 key.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError as error:
        raise ConfigurationError(_NEED) from error
    try:
        key = load_pem_private_key(_read(path, private=True), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigurationError(
            f"{path} holds no private key without a password; make one with `mx keys new`"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} holds a key that is not Ed25519; make one with `mx keys new`")
    return key


def encoded(public_key: bytes) -> str:
    """Return a public key as a list of keys has it."""
    return base64.b64encode(public_key).decode()


def _decoded(text: str, where: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{where} is no public key: {KEY_BYTES} bytes in base64 are one, as `mx keys show` says"
        )
    return key


def _read(path: Path, *, private: bool) -> bytes:
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ConfigurationError(f"{path} is no regular file; name a file with a key")
            if private:
                _check_permissions(path, found)
            return file.read(_LARGEST)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}; name a file with a key") from error


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_permissions(path: Path, found: os.stat_result) -> None:
    """Refuse a private key that others can read or change.

    A group may read it when the file belongs to another user: that is the only way in which Kubernetes hands a
    secret to a process that is not root.
    """
    allowed = stat.S_IRWXU if found.st_uid == os.geteuid() else stat.S_IRWXU | stat.S_IRGRP
    if stat.S_IMODE(found.st_mode) & 0o777 & ~allowed:
        raise ConfigurationError(
            f"others can read the private key {path}, or change it: chmod 600 {path}, and make a new one if they have"
        )
