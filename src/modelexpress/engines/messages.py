"""Messages: what this package logs appears where the engine's own log does."""

import logging

_OWN = logging.getLogger("modelexpress")


def show_in_log_of(engine: str) -> None:
    """Let this package's messages take the way of an engine's: engines attach handlers to their own loggers only.

    Where somebody has configured this package's logger already, it stays as it is. Calling it twice is allowed.

    Args:
        engine: Name of the engine's logger.
    """
    theirs = logging.getLogger(engine)
    if _OWN.handlers or not theirs.handlers:
        return
    for handler in theirs.handlers:
        _OWN.addHandler(handler)
    _OWN.setLevel(theirs.getEffectiveLevel())
    _OWN.propagate = False
