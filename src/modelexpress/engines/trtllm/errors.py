"""Errors of the checkpoint level: each is one of this package's and the built-in one that callers expect."""

from modelexpress.errors import (
    CheckpointError,
    ConfigurationError,
    LoadError,
    ModelExpressError,
    NoSourceFound,
)


class SourceNotFound(NoSourceFound, TimeoutError):
    """No complete checkpoint of the model was published in time."""


class CheckpointFileMissing(CheckpointError, FileNotFoundError):
    """The checkpoint folder lacks its configuration or the file of a rank."""


class NoSpace(CheckpointError):
    """The disk has no room for a checkpoint, or a limit allows none."""


class TransferFailed(LoadError, RuntimeError):
    """A rank could not be received from any source; what has arrived is kept for the next attempt."""


class BuilderMissing(ConfigurationError, FileNotFoundError):
    """`trtllm-build` is not installed."""


class BuildFailed(ModelExpressError, RuntimeError):
    """`trtllm-build` ended with an error; an engine that was there before stays."""
