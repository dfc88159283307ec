"""A process beside `trtllm-build`: it kills the builder, and all that the builder started, when the loader is gone.

However the loader ended: nobody that is killed can clean up. It is run as a file of its own, with the loader's process
id as its argument and a pipe of the loader as standard input, and leads the group of processes that it kills.
"""

import os
import select
import signal
import sys

_LOOK_SECONDS = 1.0


def main() -> None:
    """Wait for the end of the loader, and kill this process's group, itself included."""
    loader = int(sys.argv[1])
    # The pipe says it at once. A process that the loader has forked may hold it open for longer, hence the other look.
    while os.getppid() == loader and not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
