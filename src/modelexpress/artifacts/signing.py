"""Who vouches for an artifact: Ed25519 signatures of what was sealed, and of the content itself.

CRC32C, the checksum of sealed manifests, finds damage, and anybody can make other bytes that fit it. A signature over
the manifest alone would let them. So the signer adds SHA-256 of each file, and what is signed is

    b"modelexpress artifact v1\\0" + artifact id, 64 hex digits + SHA-256 of each file, 32 bytes each, in order

The signature that travels is one byte 1, the public key (32 bytes), the Ed25519 signature (64 bytes, RFC 8032), and
the digests of the files. Modification times, and which host offers the artifact, are not signed.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from modelexpress.artifacts.keys import KEY_BYTES, TrustedKeys, encoded, read_private_key
from modelexpress.artifacts.sealed import SealedManifest
from modelexpress.artifacts.snapshot import Snapshot
from modelexpress.errors import ArtifactUnsigned

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Policy", "Signer", "TrustedKeys", "Verdict", "verify"]

logger = logging.getLogger(__name__)

_DOMAIN = b"modelexpress artifact v1\0"
_FORMAT = b"\x01"
_SIGNATURE_BYTES = 64
_DIGEST_BYTES = 32


class Policy(Enum):
    """What to do with an artifact that no trusted key signed."""

    OFF = "off"
    WARN = "warn"
    REQUIRE = "require"


@dataclass(frozen=True)
class Verdict:
    """What is known about who made an artifact.

    Attributes:
        trusted: A listed key signed it.
        reason: In a sentence.
        digests: SHA-256 of each file, as signed; empty when nobody who is trusted signed.
    """

    trusted: bool
    reason: str
    digests: Sequence[bytes] = ()


class Signer:
    """Signs what this host offers.

    Args:
        key: The private key.
    """

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> "Signer":
        """Return the signer with the private key in a file.

        Raises:
            ConfigurationError: The file cannot be read, can be read by others, or holds no Ed25519 key.
        """
        return cls(read_private_key(path))

    @property
    def public_key(self) -> str:
        """The public key as a list of trusted keys has it: base64."""
        return encoded(self._key.public_key().public_bytes_raw())

    def sign(self, snapshot: Snapshot) -> bytes:
        """Return the signature of an artifact, which travels beside its manifest: 97 bytes, and 32 for each file."""
        digests = b"".join(hashlib.sha256(snapshot.content(file.index)).digest() for file in snapshot.manifest.files)
        signature = self._key.sign(_signed(snapshot.manifest, digests))
        return _FORMAT + self._key.public_key().public_bytes_raw() + signature + digests


def verify(manifest: SealedManifest, signature: bytes | None, trusted: TrustedKeys | None, policy: Policy) -> Verdict:
    """Judge the signature of an artifact. The verdict goes to `install`, which holds the content against it.

    Args:
        manifest: What the source sealed.
        signature: What came with it, if anything.
        trusted: The keys whose signatures count; None: there are none.
        policy: What to do where no such key signed; with `OFF` signatures are not looked at.

    Raises:
        ArtifactUnsigned: The policy is `REQUIRE`, and no listed key signed this artifact.
    """
    if policy is Policy.OFF:
        return Verdict(False, "signatures are not checked")
    verdict = _judge(manifest, signature, trusted)
    if verdict.trusted:
        return verdict
    if policy is Policy.REQUIRE:
        raise ArtifactUnsigned(
            f"artifact {manifest.artifact_id[:16]} is refused: {verdict.reason}; set MX_ARTIFACT_SIGNING_KEY at its "
            "source, and list that key in MX_ARTIFACT_TRUSTED_KEYS here"
        )
    logger.warning("artifact %s is taken though %s", manifest.artifact_id[:16], verdict.reason)
    return verdict


def _judge(manifest: SealedManifest, signature: bytes | None, trusted: TrustedKeys | None) -> Verdict:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not signature:
        return Verdict(False, "it is not signed")
    head = len(_FORMAT) + KEY_BYTES + _SIGNATURE_BYTES
    if not signature.startswith(_FORMAT) or len(signature) != head + _DIGEST_BYTES * len(manifest.files):
        return Verdict(False, "its signature is none for so many files, or of a newer format")
    key = signature[len(_FORMAT) : len(_FORMAT) + KEY_BYTES]
    digests = signature[head:]
    if trusted is None or key not in trusted.keys:
        return Verdict(False, f"the key that signed it, {encoded(key)}, is not listed")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(
            signature[head - _SIGNATURE_BYTES : head], _signed(manifest, digests)
        )
    except (InvalidSignature, ValueError):
        return Verdict(False, "its signature is wrong: another artifact was signed, or the signature was changed")
    name = trusted.keys[key] or encoded(key)
    of_each = [digests[begin : begin + _DIGEST_BYTES] for begin in range(0, len(digests), _DIGEST_BYTES)]
    return Verdict(True, f"signed by {name}", of_each)


def _signed(manifest: SealedManifest, digests: bytes) -> bytes:
    return _DOMAIN + manifest.artifact_id.encode() + digests
