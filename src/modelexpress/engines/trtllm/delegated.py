"""The loader that TensorRT-LLM hands the loading of a model to, from version 1.3 on."""

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from modelexpress.engines.identity import revision_of
from modelexpress.engines.process_worker import process_worker
from modelexpress.engines.trtllm.delegated_identity import delegated_identity, without_sizes
from modelexpress.engines.trtllm.harmless import harmless
from modelexpress.engines.trtllm.native import native, without_unknown
from modelexpress.engines.trtllm.place import device_index, place_of
from modelexpress.engines.trtllm.presharded import RUNTIME_ALIASES
from modelexpress.engines.trtllm.rank_log import write_rank_log
from modelexpress.engines.trtllm.registry_address import with_registry
from modelexpress.engines.trtllm.undoing import undone_on_error
from modelexpress.errors import ConfigurationError, IdentityError, ModelExpressError, PartialModel
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Publication, Worker
from modelexpress.settings import Settings
from modelexpress.weights.awaiting import await_source
from modelexpress.weights.catalog import catalogue
from modelexpress.weights.load import load
from modelexpress.weights.publish import publish
from modelexpress.weights.rank_tensors import every_part, rank_tensors
from modelexpress.weights.settle import settle

logger = logging.getLogger(__name__)


class MxModelLoader:
    """Takes one rank's weights, as the engine's transforms leave them, from a peer; else the engine's loader runs.

    The arguments are the engine's. `model_config` and `load_config` are its own affair.

    Args:
        checkpoint_loader: The engine's, for which this one acts.
        checkpoint_dir: The checkpoint.
        native_loader_kwargs: For the engine's loader of Hugging Face checkpoints.
        mapping: This worker's rank, and the sizes of its replica.
        source_identity: What tells the engine whether two workers' weights are interchangeable.
        prepare_post_transform_receiver: Gives a model the structure that transforms leave, before it is filled.
        transform_protocol_version: Of the engine's transforms.
        p2p_enabled: Whether the engine has qualified this model for it.
        mx_server_url: HOST:PORT of the registry, with or without a scheme; None takes it from the environment.
    """

    def __init__(
        self,
        *,
        model_config: Any,
        load_config: Any,
        checkpoint_loader: Any,
        checkpoint_dir: str,
        native_loader_kwargs: dict[str, Any],
        mapping: Any,
        source_identity: Any,
        prepare_post_transform_receiver: Callable[[Any], Any],
        transform_protocol_version: int | None,
        p2p_enabled: bool,
        mx_server_url: str | None,
    ) -> None:
        self._checkpoint_loader = checkpoint_loader
        self._checkpoint_dir = checkpoint_dir
        self._native_kwargs = native_loader_kwargs
        self._mapping = mapping
        self._source_identity = source_identity
        self._prepare = prepare_post_transform_receiver
        self._version = transform_protocol_version
        self._p2p_enabled = p2p_enabled
        self._settings = with_registry(mx_server_url, Settings.read())
        self._place = place_of(mapping)
        write_rank_log(self._place.rank, self._settings)
        self._publication: Publication | None = None
        self.p2p_succeeded = False

    @property
    def transform_protocol_version(self) -> int | None:
        """Version of the transforms that the weights went through; None where no peer filled the model."""
        return self._version if self.p2p_succeeded else None

    def load_model(self, model: torch.nn.Module) -> Any:
        """Fill a model.

        Args:
            model: This rank's, in memory.

        Returns:
            An empty dictionary after a peer has filled it completely; else what the engine's own loader returns,
            which the engine puts into the model.

        Raises:
            ConfigurationError: No peer delivered, and the engine's loader is not installed.
            PartialModel: A transfer failed after weights had been overwritten, and the device had no room to keep what
                they were: the engine's loader might leave some of them as they are now.
        """
        self.p2p_succeeded = False
        try:
            self._receive(model, self._identity())
        except PartialModel as error:
            logger.error("[Worker %d] not loaded: %s", self._place.rank, error)
            raise
        except ModelExpressError as error:
            logger.warning("[Worker %d] loading natively: %s", self._place.rank, error)
        except Exception:  # whatever it was, the model is as it was made
            logger.exception("[Worker %d] loading natively: this is a defect, please report it", self._place.rank)
        else:
            self.p2p_succeeded = True
            return {}
        loader = native("hf.checkpoint_loader", "HfCheckpointLoader").load_weights
        given = without_unknown(loader, self._native_kwargs)
        return loader(self._checkpoint_loader, self._checkpoint_dir, mapping=self._mapping, **given)

    def publish_model(self, model: torch.nn.Module) -> None:
        """Offer a model whose transforms are through, whichever way it was loaded. Never raises."""
        outcome = f"[Worker {self._place.rank}] not becoming a source"
        with harmless(outcome):
            self._offer(model, self._identity())

    def cleanup(self) -> None:
        """Withdraw what this loader offers. Calling it twice is allowed, and it never raises."""
        publication, self._publication = self._publication, None
        if publication is not None:
            with harmless(f"[Worker {self._place.rank}] what was offered may be listed until it times out"):
                publication.close()

    def _identity(self) -> SourceIdentity:
        if not self._p2p_enabled:
            raise ConfigurationError("TensorRT-LLM has not qualified this model for weights that are transformed")
        if not self._settings.p2p_metadata:
            raise ConfigurationError("MX_P2P_METADATA=0 leaves nobody to share weights with")
        return delegated_identity(self._source_identity, self._version, self._revision)

    @cached_property
    def _revision(self) -> str:
        """What tells the checkpoint from others of its name; of a folder's content, as it was when this was asked."""
        try:
            return revision_of(str(self._checkpoint_dir), None, None, self._settings)
        except OSError as error:
            raise IdentityError(
                f"the checkpoint cannot be told from others of its name: {error}; set MX_MODEL_REVISION"
            ) from error

    def _receive(self, model: torch.nn.Module, identity: SourceIdentity) -> None:
        """Fill the model from a peer; its structure is left alone where there is none.

        Raises:
            PartialModel: The transfer failed, and the model is not what it was.
            ModelExpressError: No peer delivered; all values are as before.
        """
        rank = self._place.rank
        await_source(identity, rank, self._settings, without_sizes)
        try:
            self._prepare(model)
        except Exception as error:  # whatever the engine's own callback raises
            raise ConfigurationError(f"the model could not be prepared for transformed weights: {error}") from error
        tensors = rank_tensors(model, RUNTIME_ALIASES)
        worker = self._worker()
        if worker is not None:
            # What lies within other tensors is not received by itself, and must move with them.
            settle(catalogue(every_part(model)))
        with undone_on_error(tensors.values()):
            report = load(tensors, identity, rank, worker=worker, settings=self._settings)
        if worker is not None:
            self._publication = _publication_of(worker, identity)
        logger.info("[Worker %d] the weights came from a peer:\n%s", rank, report)
        # Whatever the transport was: this is what the engine's own tests look for in a rank's file.
        logger.info("[Worker %d] RDMA transfer complete: %d tensors, %.2f GB", rank, len(tensors), report.nbytes / 1e9)

    def _offer(self, model: torch.nn.Module, identity: SourceIdentity) -> None:
        worker = self._worker()
        if worker is None or worker.publishes(identity.source_id):
            return  # the reason is logged; or others read already what this worker has received
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what the engine has enqueued is part of the weights
        tensors = rank_tensors(model, RUNTIME_ALIASES)
        settle(catalogue(every_part(model)))
        kept = {name: tensor.detach() for name, tensor in tensors.items()}
        self._publication = publish(kept, identity, self._place.rank, worker=worker, settings=self._settings)
        logger.info(
            "[Worker %d] offers %d tensors of '%s' as source %s",
            self._place.rank,
            len(kept),
            identity.model_name,
            identity.source_id,
        )

    def _worker(self) -> Worker | None:
        return process_worker(device_index(self._place), self._settings)


def _publication_of(worker: Worker, identity: SourceIdentity) -> Publication | None:
    """Return what a worker offers under an identity since it has received it; None where it cannot be passed on."""
    offered = [publication for publication in worker.publications if publication.source_id == identity.source_id]
    return offered[-1] if offered else None
