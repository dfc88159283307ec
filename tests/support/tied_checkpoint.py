"""Checkpoints whose models have one tensor at both ends."""

import json
from pathlib import Path


def tie(checkpoint: Path) -> Path:
    """Let the two ends of a model be one tensor; what its folder, returned, has for the other end is left unread."""
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return checkpoint
