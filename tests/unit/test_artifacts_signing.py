"""Signatures: what they cover, whom they convince, and what each policy makes of them."""

import dataclasses
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelexpress.artifacts import keys as key_files
from modelexpress.artifacts.install import install
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.signing import Policy, Signer, TrustedKeys, verify
from modelexpress.artifacts.snapshot import Snapshot, take_snapshot
from modelexpress.errors import ArtifactInvalid, ArtifactUnsigned, ConfigurationError
from tests.support.caches import cache_files, write_cache
from tests.support.commands import run

KIND = Triton()
FILES = cache_files(3, 500)


@pytest.fixture
def artifact(tmp_path: Path) -> Iterator[Snapshot]:
    with take_snapshot(KIND, write_cache(tmp_path / "source", FILES), 4_096) as snapshot:
        yield snapshot


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    key_files.new_private_key(tmp_path / "builder.pem")
    return Signer.from_file(tmp_path / "builder.pem")


def trusting(tmp_path: Path, *lines: str) -> TrustedKeys:
    (tmp_path / "trusted").write_text("\n".join(lines))
    return TrustedKeys.from_file(tmp_path / "trusted")


def test_a_listed_key_is_trusted_and_vouches_for_the_content(
    artifact: Snapshot, signer: Signer, tmp_path: Path
) -> None:
    trusted = trusting(tmp_path, "# the fleet", "", f"{signer.public_key} the build farm")
    verdict = verify(artifact.manifest, signer.sign(artifact), trusted, Policy.REQUIRE)
    assert verdict.trusted
    assert verdict.reason == "signed by the build farm"
    contents = {file.index: artifact.content(file.index) for file in artifact.manifest.files}
    assert len(install(KIND, artifact.manifest, tmp_path / "cache", contents, verdict=verdict).written) == len(FILES)


def test_content_that_only_fits_the_checksum_is_refused(artifact: Snapshot, signer: Signer, tmp_path: Path) -> None:
    verdict = verify(artifact.manifest, signer.sign(artifact), trusting(tmp_path, signer.public_key), Policy.WARN)
    forged, index = collision(bytes(artifact.content(0))), 0
    contents = {file.index: artifact.content(file.index) for file in artifact.manifest.files}
    contents[index] = memoryview(forged)
    assert len(install(KIND, artifact.manifest, tmp_path / "careless", contents).written) == len(FILES)
    with pytest.raises(ArtifactInvalid, match="forged"):
        install(KIND, artifact.manifest, tmp_path / "careful", contents, verdict=verdict)
    assert not (tmp_path / "careful").exists()


def collision(content: bytes) -> bytes:
    """Return other bytes of the same size and CRC32C: adding a multiple of the polynomial changes no remainder."""
    generator = int(f"{0x1_1EDC_6F41:033b}"[::-1], 2)  # Castagnoli, in the bit order of the bytes
    other = bytearray(content)
    for place, byte in enumerate(generator.to_bytes(5, "little")):
        other[place] ^= byte
    assert bytes(other) != content
    return bytes(other)


@pytest.mark.parametrize("kind", ["none", "empty", "short", "other key", "other artifact", "other format", "too long"])
def test_what_does_not_convince(kind: str, artifact: Snapshot, signer: Signer, tmp_path: Path) -> None:
    trusted = trusting(tmp_path, signer.public_key)
    good = signer.sign(artifact)
    signature: bytes | None = good
    manifest = artifact.manifest
    if kind == "none":
        signature = None
    elif kind == "empty":
        signature = b""
    elif kind == "short":
        signature = good[:-1]
    elif kind == "other key":
        key_files.new_private_key(tmp_path / "other.pem")
        signature = Signer.from_file(tmp_path / "other.pem").sign(artifact)
    elif kind == "other artifact":
        manifest = dataclasses.replace(manifest, chunk_size=manifest.chunk_size + 1)
    elif kind == "other format":
        signature = b"\x02" + good[1:]
    else:
        signature = good + bytes(32)
    assert not verify(manifest, signature, trusted, Policy.WARN).trusted
    assert verify(manifest, signature, trusted, Policy.WARN).digests == ()
    with pytest.raises(ArtifactUnsigned, match=manifest.artifact_id[:16]):
        verify(manifest, signature, trusted, Policy.REQUIRE)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.integers(0, 97 + 32 * len(FILES) - 1), flip=st.integers(1, 255))
def test_no_byte_of_a_signature_can_be_changed(artifact: Snapshot, signer: Signer, place: int, flip: int) -> None:
    signature = bytearray(signer.sign(artifact))
    trusted = TrustedKeys({bytes(signature[1:33]): ""})
    signature[place] ^= flip
    with pytest.raises(ArtifactUnsigned):
        verify(artifact.manifest, bytes(signature), trusted, Policy.REQUIRE)


def test_without_a_list_nobody_is_trusted(artifact: Snapshot, signer: Signer) -> None:
    with pytest.raises(ArtifactUnsigned, match="not listed"):
        verify(artifact.manifest, signer.sign(artifact), None, Policy.REQUIRE)


def test_the_policies(artifact: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    assert not verify(artifact.manifest, None, None, Policy.OFF).trusted
    assert not caplog.records
    assert not verify(artifact.manifest, None, None, Policy.WARN).trusted
    assert "not signed" in caplog.text
    with pytest.raises(ArtifactUnsigned, match="MX_ARTIFACT_SIGNING_KEY"):
        verify(artifact.manifest, None, None, Policy.REQUIRE)


# ---- files with keys


def test_a_private_key_is_this_users_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        key_files.new_private_key(tmp_path / "key")
    finally:
        os.umask(old)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    Signer.from_file(tmp_path / "key")
    for mode in (0o604, 0o640, 0o644, 0o660, 0o602):
        (tmp_path / "key").chmod(mode)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            Signer.from_file(tmp_path / "key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_group_may_read_the_key_of_another_user(tmp_path: Path) -> None:
    key_files.new_private_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o440)
    os.chown(tmp_path / "key", 12_345, -1)
    Signer.from_file(tmp_path / "key")
    (tmp_path / "key").chmod(0o444)
    with pytest.raises(ConfigurationError, match="others can read"):
        Signer.from_file(tmp_path / "key")


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    for name in ("key", "link", "nowhere/key"):
        with pytest.raises(ConfigurationError, match="name another file"):
            key_files.new_private_key(tmp_path / name)
    assert (tmp_path / "key").read_text() == "precious"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("algorithm", [["-algorithm", "RSA"], ["-algorithm", "X25519"]])
def test_keys_of_other_kinds_are_refused(tmp_path: Path, algorithm: list[str]) -> None:
    path = tmp_path / "key"
    done = subprocess.run(["openssl", "genpkey", *algorithm, "-out", path], capture_output=True)
    assert done.returncode == 0, done.stderr
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="not Ed25519"):
        Signer.from_file(path)


def test_a_key_that_openssl_made_signs(tmp_path: Path, artifact: Snapshot) -> None:
    path = tmp_path / "key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True, capture_output=True)
    path.chmod(0o600)
    signer = Signer.from_file(path)
    trusted = trusting(tmp_path, signer.public_key)
    assert verify(artifact.manifest, signer.sign(artifact), trusted, Policy.REQUIRE).trusted


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----", bytes(100), b"\xff" * 2_000_000])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="mx keys new"):
        Signer.from_file(path)


def test_pipes_folders_and_nothing_are_no_key_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", "nothing", "."):
        for read in (Signer.from_file, TrustedKeys.from_file):
            with pytest.raises(ConfigurationError):
                read(tmp_path / name)


@pytest.mark.parametrize("line", ["abc", "A" * 43, "A" * 88, "é", "ssh-ed25519 AAAA", "A" * 42 + "%="])
def test_a_line_that_is_no_key_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigurationError, match="line 2 of"):
        trusting(tmp_path, "# keys", line)


def test_mx_keys_makes_and_shows_keys(tmp_path: Path, artifact: Snapshot) -> None:
    path = tmp_path / "farm.pem"
    made = run("keys", "new", path)
    assert made.returncode == 0, made.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    shown = run("keys", "show", path)
    assert shown.stdout == made.stdout
    trusted = trusting(tmp_path, shown.stdout)
    assert list(trusted.keys.values()) == ["farm"]
    assert verify(artifact.manifest, Signer.from_file(path).sign(artifact), trusted, Policy.REQUIRE).trusted
    again = run("keys", "new", path)
    assert again.returncode == 1
    assert "name another file" in again.stderr
    path.chmod(0o644)
    refused = run("keys", "show", path)
    assert refused.returncode == 1
    assert "chmod 600" in refused.stderr
