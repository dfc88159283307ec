"""A process that installs what `caches.cache_files` makes, and stops where it is told to: to be killed there.

Arguments: the root, the number of files, and after how many moves to wait for a line.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from modelexpress.artifacts import staging
from modelexpress.artifacts.install import install, missing
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.snapshot import Snapshot, take_snapshot
from modelexpress.artifacts.staging import StagedFile, Staging
from tests.support.caches import cache_files, write_cache
from tests.support.children import say

FILE_BYTES = 2_000


def sealed_cache(folder: Path, count: int) -> Snapshot:
    """Return the artifact that these processes install."""
    return take_snapshot(Triton(), write_cache(folder, cache_files(count, FILE_BYTES)), 1 << 20)


def main() -> None:
    """Install, or get as far as asked."""
    source, root, count, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    move, commit, moves = staging._move, Staging.commit, 0

    def pausing(source: int, number: str, folder: int, name: str) -> bool:
        nonlocal moves
        if moves == stop:
            pause("moving")
        moves += 1
        return move(source, number, folder, name)

    def pausing_before_commit(self: Staging, artifact_id: str, files: Iterable[StagedFile]) -> None:
        if stop == -1:
            pause("staged")
        commit(self, artifact_id, files)

    staging._move = pausing
    Staging.commit = pausing_before_commit  # type: ignore[method-assign]
    with sealed_cache(source, count) as snapshot:
        say("ready")
        sys.stdin.readline()
        wanted = missing(Triton(), snapshot.manifest, root)
        done = install(Triton(), snapshot.manifest, root, {file.index: snapshot.content(file.index) for file in wanted})
    say(f"{len(done.written)} {len(done.present)} {len(done.kept)}")


def pause(where: str) -> None:
    """Say where it is, and wait for a line."""
    say(where)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
