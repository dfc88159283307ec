"""How a command ends when it is told to: with everything it began undone."""

import signal
import sys


def clean_up_when_terminated() -> None:
    """Make SIGTERM and SIGHUP leave every `with` block, as Ctrl-C does; the exit status is the one of shells."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _: sys.exit(128 + caught))
