"""The NIXL library, imported without letting it change this process, and its errors as ours."""

import contextlib
import importlib
import importlib.util
import logging
import logging.config
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from modelexpress.errors import PeerLost, TransportUnavailable

_PACKAGES = ("nixl", "nixl_cu13", "nixl_cu12")
"""Where NIXL may be: its umbrella package, which chooses by torch's CUDA version, or one build by itself."""
_importing = threading.Lock()


@dataclass(frozen=True)
class NixlLibrary:
    """The native module and the exceptions it raises, which have no base of their own."""

    native: Any
    errors: tuple[type[Exception], ...]

    @contextlib.contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """Raise NIXL's errors as ours: PeerLost when the peer has gone, else TransportUnavailable."""
        try:
            yield
        except self.native.nixlRemoteDisconnectError as error:
            raise PeerLost(f"the source has gone: NIXL could not {doing}") from error
        except self.errors as error:
            raise TransportUnavailable(f"NIXL could not {doing}: {error}") from error


def missing() -> str | None:
    """Return why NIXL cannot be imported, without importing it; None when it is installed."""
    if any(importlib.util.find_spec(package) for package in _PACKAGES):
        return None
    return "NIXL is not installed: pip install 'modelexpress[nixl]'"


def load() -> NixlLibrary:
    """Return the library; the first call imports it, which takes a fifth of a second.

    The native module is used, not the classes that wrap it: those can only make agents whose progress thread
    spins, which takes a whole core from the engine.

    Raises:
        TransportUnavailable: It is not installed, or does not load here.
    """
    if (reason := missing()) is not None:
        raise TransportUnavailable(reason)
    package = next(package for package in _PACKAGES if importlib.util.find_spec(package))
    try:
        with _importing, _logging_kept():
            native = importlib.import_module(f"{package}._bindings")
    except (ImportError, OSError) as error:
        raise TransportUnavailable(f"NIXL is installed but does not load: {error}") from error
    found = (value for name, value in vars(native).items() if name.startswith("nixl") and name.endswith("Error"))
    return NixlLibrary(native, tuple(found))


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Keep the process's log handlers: NIXL 1.5 configures `logging` anew when it is imported.

    That closes every handler there is (a FileHandler with mode 'w' never writes again), logs to standard output,
    and silences errors of handlers.
    """
    configure, raising = logging.config.dictConfig, logging.raiseExceptions
    logging.config.dictConfig = lambda config: None
    try:
        yield
    finally:
        logging.config.dictConfig = configure
        logging.raiseExceptions = raising
