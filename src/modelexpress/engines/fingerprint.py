"""What tells two checkpoints of the same name apart, where nobody has named a revision."""

import hashlib
from pathlib import Path

_EDGE_BYTES = 64 << 10


def folder_fingerprint(folder: Path) -> str:
    """Return 16 hex digits for a checkpoint folder: its configuration, and the name, size and edges of its weights.

    The header of a safetensors file is at its beginning. What a training run changes without changing sizes or
    headers is seen at the end of the files. Copies of a folder on other hosts have the same fingerprint.

    Raises:
        OSError: A file cannot be read.
    """
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name != "config.json" and path.suffix not in (".safetensors", ".bin", ".pt", ".gguf"):
            continue
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(_EDGE_BYTES))
            file.seek(max(size - _EDGE_BYTES, 0))
            found.update(file.read(_EDGE_BYTES))
    return found.hexdigest()[:16]
