"""CRC32C, the checksum of sealed manifests: it finds damage at the speed of memory, and stops no forger."""

import os

from modelexpress.errors import ConfigurationError

try:
    from crc32c import crc32c
except ModuleNotFoundError as error:
    raise ConfigurationError(
        "artifacts need the package crc32c, which is not installed: pip install 'modelexpress[artifacts]'"
    ) from error


def checksums(content: memoryview, chunk_size: int) -> tuple[str, list[str]]:
    """Return the checksum of a file's content, and that of each of its chunks, as eight hex digits each."""
    if len(content) <= chunk_size:
        whole = checksum(content)
        return whole, [whole] if content else []
    total, chunks = 0, []
    for start in range(0, len(content), chunk_size):
        chunk = content[start : start + chunk_size]
        chunks.append(checksum(chunk))
        total = crc32c(chunk, total)
    return f"{total:08x}", chunks


def checksum(content: memoryview | bytes) -> str:
    """Return the CRC32C of some bytes as eight hex digits."""
    return f"{crc32c(content):08x}"


def file_checksum(descriptor: int, buffer: bytearray) -> str:
    """Return the CRC32C of what an open file holds from where it stands, read by way of a buffer."""
    total, view = 0, memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        total = crc32c(view[:count], total)
    return f"{total:08x}"
