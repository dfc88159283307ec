"""Offering a live model, before the engine's post-load step: never after it, and never at the engine's cost."""

import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from modelexpress.engines.process_worker import process_worker
from modelexpress.engines.trtllm.harmless import harmless
from modelexpress.engines.trtllm.late import what_may_change
from modelexpress.engines.trtllm.naming import model_name_of
from modelexpress.engines.trtllm.place import Place, device_index, place_of
from modelexpress.engines.trtllm.presharded import RUNTIME_ALIASES
from modelexpress.engines.trtllm.rank_log import write_rank_log
from modelexpress.engines.trtllm.registry_address import with_registry
from modelexpress.engines.trtllm.roles import offers_weights
from modelexpress.errors import ConfigurationError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Publication
from modelexpress.settings import Settings
from modelexpress.weights.rank_tensors import rank_tensors
from modelexpress.weights.unprocessed import UnprocessedSource, offer_unprocessed

logger = logging.getLogger(__name__)

BuildIdentity = Callable[..., SourceIdentity]
"""Makes an identity of a name and sizes; engines put one of their own in the place of this package's."""

_NOT = "not becoming a source"
_UNSEEN = "what is offered could not be looked at, and targets must find out by themselves"


class Attempt(Enum):
    """What became of the one attempt to offer a model."""

    FAILED = "failed"
    LEFT_OUT = "left out"
    """This worker is to offer nothing."""
    TOO_LATE = "too late"
    """The engine was up before anybody offered it."""


@dataclass(frozen=True)
class _Origin:
    """Where a model's weights come from: the checkpoint, and the registry that its loader was told (None: none)."""

    folder: str
    mx_server: str | None


@dataclass
class _Known:
    """What is known of the models of this process, as long as they live."""

    attempts: weakref.WeakKeyDictionary[torch.nn.Module, Attempt | UnprocessedSource]
    origins: weakref.WeakKeyDictionary[torch.nn.Module, _Origin]
    lock: threading.Lock


_known = _Known(weakref.WeakKeyDictionary(), weakref.WeakKeyDictionary(), threading.Lock())


def note_checkpoint(model: torch.nn.Module, folder: str, mx_server: str | None = None) -> None:
    """Note where a model's weights come from.

    Args:
        model: This rank's.
        folder: It is offered under that name where MODEL_NAME gives none.
        mx_server: It is offered at that registry; None: at the one of the environment.
    """
    _known.origins[model] = _Origin(folder, mx_server)


def offer_model(model: Any, build: BuildIdentity) -> None:
    """Offer a model's weights as they are now, where this worker is a source. Never raises.

    A model has one attempt. Whoever calls again, when the engine has gone on, changes nothing.

    Args:
        model: This rank's, with its weights in place.
        build: Makes the identity.
    """
    with harmless(_NOT), _known.lock:
        if not isinstance(model, torch.nn.Module):
            logger.warning("%s: a %s has no parameters", _NOT, type(model).__name__)
            return
        known = _known.attempts.get(model)
        # Before anything can fail: what failed once, wherever it did, is not made up for.
        _known.attempts.setdefault(model, Attempt.FAILED)
        settings, place = _settings_for(model), place_of(model=model)
        write_rank_log(place.rank, settings)
        if known is not None:
            logger.info("this model has had its attempt to become a source (%s)", _outcome(known))
            return
        _known.attempts[model] = _attempt(model, build, place, settings)


def look_after_model(worker: Any, build: BuildIdentity) -> None:
    """See to the model of an engine that is up: look whether what is offered of it is as it was. Never raises.

    A model that was not offered before its post-load step is not offered now: targets take that step themselves.
    One that cannot have such a step is the same before and after.

    Args:
        worker: The engine's, with `engine.model_engine.model`.
        build: Makes the identity.
    """
    with harmless(_NOT):
        model = getattr(getattr(getattr(worker, "engine", None), "model_engine", None), "model", None)
        if not isinstance(model, torch.nn.Module):
            logger.warning("%s: this worker has no model of torch at engine.model_engine.model", _NOT)
            return
        known = _known.attempts.get(model)
        reason = _outcome(known)
        if known is None:
            _known.attempts[model] = Attempt.TOO_LATE
            suspect = what_may_change(model)
            if suspect is None:
                del _known.attempts[model]
                offer_model(model, build)
                return
            reason = f"it was not offered, and {suspect} may have changed its weights"
        write_rank_log(place_of(model=model).rank, _settings_for(model))
        if isinstance(known, UnprocessedSource):
            after_post_load(model)
        else:
            logger.warning(
                "%s (%s): the post-load step is over, and targets would take it a second time; "
                "publish_model_params must be called before it",
                _NOT,
                reason,
            )


def after_post_load(model: torch.nn.Module) -> tuple[str, ...]:
    """Look, after the post-load step, whether what is offered is as it was, and still the model's (`after_processing`).

    If not, this is a source no longer.

    Returns:
        The names of tensors that were changed; none where the model is not offered. Never raises.
    """
    with harmless(_UNSEEN):
        known = _known.attempts.get(model)
        return known.after_processing() if isinstance(known, UnprocessedSource) else ()
    return ()


def _settings_for(model: torch.nn.Module) -> Settings:
    origin = _known.origins.get(model)
    return with_registry(origin.mx_server if origin else None, Settings.read())


def _attempt(
    model: torch.nn.Module, build: BuildIdentity, place: Place, settings: Settings
) -> Attempt | UnprocessedSource:
    if not offers_weights(settings):
        logger.info("this worker offers no weights: it is a target, or is told of no registry (MODEL_EXPRESS_URL)")
        return Attempt.LEFT_OUT
    if not settings.p2p_metadata:
        logger.info("this worker offers no weights: MX_P2P_METADATA=0")
        return Attempt.LEFT_OUT
    with harmless(_NOT):
        return _offer(model, build, place, settings)
    return Attempt.FAILED


def _offer(
    model: torch.nn.Module, build: BuildIdentity, place: Place, settings: Settings
) -> Attempt | UnprocessedSource:
    identity = identity_at(build, _name(model, settings), place)
    worker = process_worker(device_index(place), settings)
    if worker is None:
        return Attempt.FAILED  # the reason is logged
    tensors = rank_tensors(model, RUNTIME_ALIASES)
    source = offer_unprocessed(model, identity, place.rank, worker=worker, tensors=tensors, settings=settings)
    # What is offered keeps memory that nobody else may have by now: it must not outlive the model.
    weakref.finalize(model, _withdraw, source.publication).atexit = False
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    logger.info(
        "rank %d offers %d tensors (%.2f GB) of '%s' as source %s, as they are now",
        place.rank,
        len(tensors),
        nbytes / 1e9,
        identity.model_name,
        identity.source_id,
    )
    return source


def _withdraw(publication: Publication) -> None:
    """Withdraw from a thread of its own: models die wherever the garbage is collected.

    The process ends after it. A daemon would be stopped at any instruction then, and where that is in the middle of
    torch giving memory back, the process aborts.
    """
    threading.Thread(target=publication.close, name="mx-withdrawal").start()


def _name(model: torch.nn.Module, settings: Settings) -> str:
    """Return the name of a model: MODEL_NAME, else its checkpoint's, else what its configuration says.

    Raises:
        ConfigurationError: There is none. Under a word for that, models that differ would be taken for one another.
    """
    holder = getattr(getattr(model, "model_config", None), "pretrained_config", None) or getattr(model, "config", None)
    origin = _known.origins.get(model)
    named = settings.model_name or (origin and origin.folder) or getattr(holder, "_name_or_path", "")
    if not named:
        raise ConfigurationError(
            "the model has no name to be offered under: set MODEL_NAME, here and where it is asked for"
        )
    return model_name_of(str(named))


def identity_at(build: BuildIdentity, name: str, place: Place) -> SourceIdentity:
    """Return the identity of a model at this worker's place."""
    return build(
        model_name=name,
        tp_size=place.tensor_parallel_size,
        pp_size=place.pipeline_parallel_size,
        ep_size=place.expert_parallel_size,
    )


def _outcome(known: Attempt | UnprocessedSource | None) -> str:
    if isinstance(known, UnprocessedSource):
        return f"it is source {known.publication.source_id}"
    return known.value if known is not None else "it was not offered"
