"""Bringing: before an engine initialises, its caches come from a peer, as far as one has them."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from modelexpress.artifacts.fetch import fetch
from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.report import ArtifactReport, Outcome
from modelexpress.artifacts.room import Trust
from modelexpress.artifacts.signing import Policy, TrustedKeys
from modelexpress.artifacts.usage import Usage, Watch, total, watch
from modelexpress.errors import ModelExpressError, NoSourceFound, RegistryError, TriedByOther
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BroughtCache:
    """What came of one kind: a report, or the reason why there is none."""

    kind: str
    report: ArtifactReport | None = None
    reason: str = ""


class BroughtCaches:
    """What was brought, and whether the engine uses it; a context manager that ends the watching.

    Args:
        caches: One for each kind that was tried.
        watches: Of the files that are new, by kind.
        reason: Why no kind was tried, or "".
    """

    def __init__(self, caches: Iterable[BroughtCache], watches: Mapping[str, Watch], reason: str = "") -> None:
        self.caches = tuple(caches)
        self.reason = reason
        self._watches = dict(watches)

    def usage(self) -> dict[str, Usage]:
        """Return how many files of each kind were read since they came.

        Ask before anything but the engine reads the caches, such as a snapshot of them.
        """
        return {kind: each.usage() for kind, each in self._watches.items()}

    def say_usage(self, *, ready: bool = True) -> Usage:
        """Log how many files were read, and warn where none was; return the sum.

        Args:
            ready: Whether the engine is known to have compiled all that it needs.
        """
        usages = self.usage()
        for kind, usage in usages.items():
            if usage.in_vain and not ready:
                logger.warning("%s: none of the %d files that a peer compiled was used so far", kind, usage.installed)
            elif usage.in_vain:
                logger.warning(
                    "%s: none of the %d files that a peer compiled was used: the engine compiled again, so what "
                    "decides its compilation differs from the source's (versions, options, GPU)",
                    kind,
                    usage.installed,
                )
            else:
                logger.info("%s: %s", kind, usage)
        return total(usages.values())

    def close(self) -> None:
        """Stop watching. Closing twice is allowed."""
        while self._watches:
            self._watches.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def why_not(settings: Settings) -> str:
    """Return why caches are not transferred, or "" where they are."""
    if not settings.artifact_transfer:
        return "caches of compiled kernels are not transferred: MX_ARTIFACT_TRANSFER is not 1"
    if not settings.p2p_metadata:
        return "caches of compiled kernels are not transferred: MX_P2P_METADATA=0 leaves nobody to ask for them"
    return ""


def bring(
    identity: SourceIdentity,
    kinds: Iterable[Kind],
    settings: Settings | None = None,
    *,
    node_rank: int = 0,
    environ: Mapping[str, str] | None = None,
) -> BroughtCaches:
    """Complete the caches of an engine with what peers have compiled, before it initialises.

    This never raises: whatever goes wrong is logged with its reason, and the engine compiles for itself.

    Args:
        identity: What the engine says of itself and its model.
        kinds: The caches that it uses.
        settings: Read from the environment when None.
        node_rank: Of this host within its replica.
        environ: Variables that say where caches are; those of the process when None.
    """
    try:
        settings = settings or Settings.read()
        if reason := why_not(settings):
            logger.info("%s", reason)
            return BroughtCaches((), {}, reason)
        return _Bringing(identity, settings, node_rank, os.environ if environ is None else environ).run(kinds)
    except Exception as error:  # the edge to the engine, which starts whatever happens here
        logger.warning("no caches of compiled kernels were brought", exc_info=True)
        return BroughtCaches((), {}, f"it failed: {error!r}")


class _Bringing:
    """One pass over the kinds of caches, and what there is to say of several of them at once."""

    def __init__(
        self, identity: SourceIdentity, settings: Settings, node_rank: int, environ: Mapping[str, str]
    ) -> None:
        self._identity = identity
        self._settings = settings
        self._node_rank = node_rank
        self._environ = environ
        self._trust = trust_of(settings)
        self._watches: dict[str, Watch] = {}
        self._unreachable = ""
        self._nowhere: list[str] = []
        self._tried: dict[str, str] = {}

    def run(self, kinds: Iterable[Kind]) -> BroughtCaches:
        caches = [self._bring(kind) for kind in kinds]
        if self._nowhere:
            logger.info("no peer has these caches yet: %s", ", ".join(self._nowhere))
        if self._tried:
            *_, last = self._tried.values()
            logger.info("not brought: %s; the last one because %s", ", ".join(self._tried), last)
        return BroughtCaches(caches, self._watches)

    def _bring(self, kind: Kind) -> BroughtCache:
        if self._unreachable:
            return BroughtCache(kind.name, None, self._unreachable)
        try:
            report = self._fetch(kind)
        except Exception as error:  # noqa: BLE001 -- the other kinds have sources and code of their own
            self._note(kind, error)
            return BroughtCache(kind.name, None, str(error))
        logger.info("%s", report)
        return BroughtCache(kind.name, report)

    def _fetch(self, kind: Kind) -> ArtifactReport:
        root = kind.root(self._environ)
        identity = self._identity_of(kind)
        report = fetch(kind, identity, root, node_rank=self._node_rank, trust=self._trust, settings=self._settings)
        if report.paths and kind.shows_use:
            by_other = report.outcome is Outcome.BY_OTHER
            self._watches[kind.name] = watch(root, report.paths, by_other=by_other)
        return report

    def _identity_of(self, kind: Kind) -> SourceIdentity:
        return kind.identity(self._identity, compile_config_digest=self._settings.artifact_compile_config_digest)

    def _note(self, kind: Kind, error: Exception) -> None:
        match error:
            case RegistryError():
                # It would be the same for every kind, after the same timeout.
                self._unreachable = str(error)
                logger.warning("no caches of compiled kernels can be looked for: %s", error)
            case NoSourceFound():
                self._nowhere.append(f"{kind.name} ({self._identity_of(kind).source_id})")
            case TriedByOther():
                self._tried[kind.name] = str(error)
            case _:
                known = isinstance(error, ModelExpressError)
                told = None if known else error
                logger.warning("%s: not brought, the engine compiles for itself: %s", kind.name, error, exc_info=told)


def trust_of(settings: Settings) -> Trust:
    """Return whose artifacts the settings let in.

    Raises:
        ConfigurationError: The file with the trusted keys cannot be used.
    """
    keys = TrustedKeys.from_file(Path(settings.artifact_trusted_keys)) if settings.artifact_trusted_keys else None
    return Trust(Policy(settings.artifact_policy), keys)
