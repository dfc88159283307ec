"""The caches of compiled kernels of a vLLM worker: brought before the engine compiles, shared once it is ready."""

import atexit
import os
from dataclasses import replace
from typing import Any

from modelexpress.artifacts.kinds import KINDS
from modelexpress.artifacts.lifecycle import BroughtCaches, Sharing, bring, share_when_ready
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings

_sharing: list[Sharing] = []
"""What this process shares; at most one."""


def bring_caches(vllm_config: Any, weights: SourceIdentity, settings: Settings, *, first_of_host: bool) -> None:
    """Complete this host's caches from a peer, and offer them to others when the engine is ready. Never raises.

    The engine is ready when MX_ARTIFACT_READY_URL says so. Of the ranks of a host one brings, and the others wait.

    Args:
        vllm_config: vLLM's configuration as a whole; its hash covers whatever decides the compiled code.
        weights: The identity of the engine's weights.
        settings: Whether caches are transferred at all.
        first_of_host: Whether this is the rank that shares.
    """
    if _sharing:
        return  # this process has begun with another model, or with this one before
    identity = replace(weights, extra_parameters={}, compile_config_digest=vllm_config.compute_hash())
    environ = _variables()
    brought = bring(identity, KINDS, settings, environ=environ)
    if not first_of_host:
        brought.close()
        return
    _share(identity, settings, brought, environ)


def _share(identity: SourceIdentity, settings: Settings, brought: BroughtCaches, environ: dict[str, str]) -> None:
    sharing = share_when_ready(identity, KINDS, settings, brought=brought, environ=environ)
    if sharing is None:
        brought.close()
        return
    _sharing.append(sharing)
    atexit.register(sharing.close)


def _variables() -> dict[str, str]:
    """Return the variables that say where caches are, with vLLM's own defaults."""
    from vllm import envs

    return {**os.environ, "VLLM_CACHE_ROOT": envs.VLLM_CACHE_ROOT}
