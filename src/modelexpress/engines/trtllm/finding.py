"""Finding a published checkpoint: every rank of one identity must be there."""

import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from modelexpress.client import Client
from modelexpress.engines.trtllm.errors import SourceNotFound
from modelexpress.engines.trtllm.identity import described, world_size_of
from modelexpress.errors import LoadError, RegistryUnreachable
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from modelexpress.wire.records import SourceRef, SourceStatus

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.2
_LAST_PAUSE = 5.0
_SAY_EVERY = 30.0


@dataclass(frozen=True)
class Published:
    """A checkpoint that sources hold: its source id, and the ranks that it has."""

    source_id: str
    world_size: int


@dataclass(frozen=True)
class _Seen:
    """What one look at the registry showed: a checkpoint that is there, or why there is none."""

    published: Published | None
    why: str


def await_published(
    registry: str, model_name: str, source_id: str | None, wait: float, settings: Settings
) -> Published:
    """Return the checkpoint of a model as soon as sources hold all of its ranks.

    Args:
        registry: HOST:PORT.
        model_name: As the source named it.
        source_id: Which of several checkpoints of that name is meant; None: there is only one.
        wait: Seconds after which to give up; 0 looks once.
        settings: Say how long one answer of the registry may take.

    Raises:
        SourceNotFound: There was none in time.
        LoadError: There are several of that name.
        RegistryError: The registry refused to answer.
    """
    started = time.monotonic()
    pause, said = _FIRST_PAUSE, started - _SAY_EVERY
    seen = _Seen(None, "")
    cause: RegistryUnreachable | None = None
    with Client(registry, timeout=settings.answer_timeout) as client:
        while True:
            try:
                seen, cause = _look(client, model_name, source_id), None
            except RegistryUnreachable as error:
                seen, cause = _Seen(None, str(error)), error
            if seen.published is not None:
                return seen.published
            now = time.monotonic()
            if now - started >= wait:
                break
            if now - said >= _SAY_EVERY:
                logger.info("waiting for a source of %s, %.0f of %g s: %s", model_name, now - started, wait, seen.why)
                said = now
            time.sleep(min(pause, started + wait - now))
            pause = min(2 * pause, _LAST_PAUSE)
    logger.error("%s; is `mx trtllm publish` running under this name? See `mx sources`", seen.why)
    raise SourceNotFound(f"Source not found for {model_name} after {wait:g} s") from cause


def ranks_of(client: Client, model_name: str, source_id: str, rank: int) -> list[SourceRef]:
    """Return the ready sources of one rank of a checkpoint.

    Raises:
        RegistryError: The registry could not be asked.
    """
    refs = client.list_sources(model_name=model_name, status=SourceStatus.READY, worker_rank=rank)
    return [ref for ref in refs if ref.source_id == source_id]


def _look(client: Client, model_name: str, source_id: str | None) -> _Seen:
    refs = client.list_sources(model_name=model_name, status=SourceStatus.READY)
    ranks: defaultdict[str, set[int]] = defaultdict(set)
    example: dict[str, SourceRef] = {}
    for ref in refs:
        if source_id in (None, ref.source_id):
            ranks[ref.source_id].add(ref.worker_rank)
            example[ref.source_id] = ref
    identities = {each: found for each, ref in example.items() if (found := _identity(client, ref)) is not None}
    sizes = {each: size for each, said in identities.items() if (size := world_size_of(said)) is not None}
    complete = sorted(each for each, size in sizes.items() if ranks[each] >= set(range(size)))
    if len(complete) > 1:
        raise LoadError(_several(model_name, {each: identities[each] for each in complete}))
    if complete:
        return _Seen(Published(complete[0], sizes[complete[0]]), "")
    return _Seen(None, _why(client.address, model_name, sizes, ranks))


def _identity(client: Client, ref: SourceRef) -> SourceIdentity | None:
    found = client.get(ref.source_id, ref.worker_id)
    return found[1] if found is not None else None


def _several(model_name: str, identities: Mapping[str, SourceIdentity]) -> str:
    """Return what to do where several checkpoints have one name."""
    said = {each: described(identity) for each, identity in identities.items()}
    alike = ", which differ in their weights or files" if len(set(said.values())) < len(said) else ""
    listed = "; ".join(f"{each} ({what})" for each, what in said.items())
    return (
        f"{len(said)} checkpoints of '{model_name}' are published{alike}: {listed}; name the one that is meant by its "
        "source id (--source-id, or source_id=), or publish them under names of their own"
    )


def _why(registry: str, model_name: str, sizes: Mapping[str, int], ranks: Mapping[str, set[int]]) -> str:
    if not sizes:
        return f"the registry at {registry} lists no TensorRT-LLM checkpoint '{model_name}'"
    source_id, size = next(iter(sizes.items()))
    missing = sorted(set(range(size)) - ranks[source_id])
    return f"source {source_id} of '{model_name}' lacks ranks {missing} of {size}"
