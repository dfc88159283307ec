"""The processes of a slow stand-in for `trtllm-build`, and the hidden folder that it builds into."""

from pathlib import Path

from modelexpress.weights.staging_folder import PREFIX
from tests.support.waiting import wait_until


def await_processes(engine: Path) -> tuple[int, int]:
    """Return the process ids of the stand-in that builds an engine, and of its helper, as soon as both say them."""

    def said() -> list[int]:
        texts = [path.read_text() for path in sorted(engine.parent.glob(f"{PREFIX}*/rank[01].engine"))]
        return [int(text) for text in texts] if len(texts) == 2 and all(texts) else []

    builder, helper = wait_until(said)
    return builder, helper


def ended(process: int) -> bool:
    """Return whether a process has ended, be it that nobody has asked for its exit status yet."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
