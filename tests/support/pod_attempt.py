"""A process that makes an attempt and does what it is told: to succeed, to fail, or to be killed meanwhile.

Arguments: the root, the key, the time to live, and how long to wait for others.
"""

import sys
from pathlib import Path

from modelexpress.artifacts.marks import FailedRecently, InstalledByOther, Mine, attempt
from tests.support.children import say, told


def main() -> None:
    """Say what it got; if the attempt is its own, end it as the next line says."""
    root, key, ttl, wait = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    say("started")
    try:
        with attempt(root, key, ttl, wait=wait) as state:
            match state:
                case Mine():
                    say("mine")
                    end(state, told())
                case InstalledByOther():
                    say("installed by other")
                case FailedRecently(_, reason):
                    say(f"failed: {reason}")
    except RuntimeError as error:
        say(f"raised {error}")


def end(mine: Mine, how: str) -> None:
    """Succeed, raise, or just leave."""
    if how == "succeed":
        mine.succeed()
    elif how == "raise":
        raise RuntimeError("the source is gone")
    say("ended")


if __name__ == "__main__":
    main()
