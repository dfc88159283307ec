"""Taking a live model's weights from a peer, rank by rank, into the engine's own parameters."""

import logging
import time
from typing import Any

import torch

from modelexpress.engines.trtllm.live_publish import BuildIdentity, identity_at, note_checkpoint
from modelexpress.engines.trtllm.naming import model_name_of
from modelexpress.engines.trtllm.place import Place, place_of
from modelexpress.engines.trtllm.presharded import RUNTIME_ALIASES, mark_presharded
from modelexpress.engines.trtllm.rank_log import write_rank_log
from modelexpress.engines.trtllm.registry_address import with_registry
from modelexpress.engines.trtllm.roles import Role, role_of
from modelexpress.errors import ConfigurationError, ModelExpressError, NoSourceFound
from modelexpress.settings import Settings
from modelexpress.weights.awaiting import await_source
from modelexpress.weights.load import load
from modelexpress.weights.rank_tensors import rank_tensors

logger = logging.getLogger(__name__)


class LiveWeightLoader:
    """Fills a model from a source of the same model and sizes.

    Args:
        build: Makes the identity.
        mx_server: HOST:PORT of the registry, with or without a scheme; None takes it from the environment.
    """

    def __init__(self, build: BuildIdentity, mx_server: str | None = None) -> None:
        self._build = build
        self.mx_server = mx_server

    @property
    def settings(self) -> Settings:
        """The settings of the environment as it is now: engines change it between two calls."""
        return with_registry(self.mx_server, Settings.read())

    def load_weights(self, checkpoint_dir: str, mapping: Any = None, model: Any = None, **_: Any) -> dict[str, Any]:
        """Fill a model with exactly this rank's shard, as the source's loader left it, before its post-load step.

        Nothing of a checkpoint is read. Where this fails, the engine's own loader must run: layers are told that
        what comes next is whole.

        Args:
            checkpoint_dir: Names the model where MODEL_NAME does not.
            mapping: The engine's; tells this worker's rank, and the sizes.
            model: This rank's, in memory. What the engine passes beyond it is left alone.

        Returns:
            An empty dictionary: the weights are in the model.

        Raises:
            ConfigurationError: There is no model.
            NoSourceFound: Nobody has the weights, or only at other sizes; or MODEL_EXPRESS_SOURCE makes this a source.
            PartialModel: The load failed after weights had been overwritten.
            ModelExpressError: The load failed, and the model is as before.
        """
        settings, place = self.settings, place_of(mapping, model)
        write_rank_log(place.rank, settings)
        if not isinstance(model, torch.nn.Module):
            raise ConfigurationError("there is no model to fill: the engine passes `model=` with LoadFormat.PRESHARDED")
        mark_presharded(model, False)  # until it is true: where this fails, the engine reads a checkpoint
        note_checkpoint(model, str(checkpoint_dir), self.mx_server)
        try:
            self._receive(model, model_name_of(settings.model_name or str(checkpoint_dir)), place, settings)
        except ModelExpressError as error:
            logger.warning("rank %d took nothing from a peer: %s", place.rank, error)
            raise
        except Exception:  # the engine goes on without a word, whatever it was
            logger.exception("rank %d took nothing from a peer: this is a defect, please report it", place.rank)
            raise
        return {}

    def cleanup(self) -> None:
        """Do nothing: the engine calls it; what a load opened is closed when it ends."""

    def _receive(self, model: torch.nn.Module, name: str, place: Place, settings: Settings) -> None:
        if not settings.p2p_metadata:
            raise NoSourceFound("MX_P2P_METADATA=0 leaves nobody to ask for the weights")
        if role_of(settings) is Role.SOURCE:
            raise NoSourceFound("MODEL_EXPRESS_SOURCE=1 makes this worker a source: it loads natively")
        identity = identity_at(self._build, name, place)
        tensors = rank_tensors(model, RUNTIME_ALIASES)
        await_source(identity, place.rank, settings)
        started = time.perf_counter()
        report = load(tensors, identity, place.rank, settings=settings)
        seconds = time.perf_counter() - started
        mark_presharded(model, True)
        logger.info("the weights of '%s' came from a peer:\n%s", name, report)
        # The next two lines are what the engine's own tests look for in a rank's file, once each.
        logger.info("Matched %d/%d params", len(tensors), len(tensors))
        logger.info(
            "Rank %d: transferred %d params (%.2f GB, %.2f GB/s)",
            place.rank,
            len(tensors),
            report.nbytes / 1e9,
            report.nbytes / 1e9 / max(seconds, 1e-9),
        )
