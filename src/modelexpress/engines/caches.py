"""The caches of compiled kernels of an engine's worker: brought before it compiles, shared once it is ready."""

import atexit
from collections.abc import Mapping
from dataclasses import replace

from modelexpress.artifacts.kinds import KINDS
from modelexpress.artifacts.lifecycle import Sharing, bring, share_when_ready
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings

_sharing: list[Sharing] = []
"""What this process shares; at most one."""


def bring_caches(
    weights: SourceIdentity,
    configuration: str,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    worker: Worker | None,
) -> None:
    """Complete this host's caches from a peer, and offer them to others when the engine is ready. Never raises.

    The engine is ready when MX_ARTIFACT_READY_URL says so. Of the ranks of a host one brings, and the others wait.

    Args:
        weights: The identity of the engine's weights.
        configuration: Digest of whatever decides the compiled code.
        settings: Whether caches are transferred at all.
        environ: The variables that say where caches are, with the engine's own defaults.
        worker: Shares them, at the first rank of a host; None at the others.
    """
    if _sharing:
        return  # this process has begun with another model, or with this one before
    identity = replace(weights, extra_parameters={}, compile_config_digest=configuration)
    brought = bring(identity, KINDS, settings, environ=environ)
    sharing = None
    if worker is not None:
        sharing = share_when_ready(identity, KINDS, settings, brought=brought, environ=environ, worker=worker)
    if sharing is None:
        brought.close()
        return
    _sharing.append(sharing)
    atexit.register(sharing.close)
