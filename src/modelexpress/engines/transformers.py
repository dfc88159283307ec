"""transformers: a model for a script that uses no engine, with its weights from a peer."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modelexpress.engines.fingerprint import folder_fingerprint
from modelexpress.errors import CheckpointError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from modelexpress.weights.load import load
from modelexpress.weights.report import Progress
from modelexpress.weights.small_files import listed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)


def load_from_peer(
    config_or_folder: "PretrainedConfig | Path | str",
    *,
    identity: SourceIdentity | None = None,
    registry: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    model_class: Any = None,
    worker: Worker | None = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
) -> "PreTrainedModel":
    """Return a model of transformers whose weights come from a peer, else from the folder.

    The model is built without memory for its parameters; what it computes for itself, such as rotary frequencies, is
    computed here. Where a checkpoint's tensors are not the model's, transformers reads the folder and converts them.

    Args:
        config_or_folder: A configuration, which needs a peer, or a checkpoint folder, whose weights are read where no
            peer has them. A folder may hold a configuration and no weights.
        identity: What the weights are; None: the folder's name or the configuration's `name_or_path`, the dtype, and
            MX_MODEL_REVISION, or else what tells this folder's weights from others.
        registry: HOST:PORT of the registry; None takes it from the environment.
        dtype: Of the weights; None: the one in the configuration.
        device: Where the weights go.
        model_class: Of the model; None: that of causal language models, AutoModelForCausalLM.
        worker: Makes this process a source of the model until it is closed.
        progress: Told the bytes in place and the bytes in all.
        settings: Read from the environment when None.

    Raises:
        LoadError: Neither a peer nor the folder had the weights.
        Exception: No peer had them, and transformers could not read the folder either.

    Example:
        >>> model = load_from_peer("llama/", registry="localhost:8001", device="cuda")  # doctest: +SKIP
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = settings or Settings.read()
    folder = Path(config_or_folder) if isinstance(config_or_folder, str | Path) else None
    config: Any = config_or_folder if folder is None else AutoConfig.from_pretrained(folder)
    wanted = dtype or config.dtype or torch.get_default_dtype()
    kind = model_class or AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model: Any = kind.from_config(config, dtype=wanted)
    storage = folder if folder is not None and any(folder.glob("*.safetensors")) else None
    report = load(
        model,
        identity or _identity(folder, config, wanted, settings),
        registry=registry,
        storage=storage,
        native=None if storage is None else lambda: _fill(model, kind, storage, wanted, device),
        device=device,
        worker=worker,
        progress=progress,
        settings=settings,
    )
    logger.info("%s", report)
    ready: PreTrainedModel = model.to(device).eval()  # its parameters are there: this moves what it computed
    return ready


def _fill(model: Any, kind: Any, folder: Path, dtype: torch.dtype, device: torch.device | str) -> None:
    """Fill a model as transformers does: where its tensors are others than the checkpoint's, such as stacked experts.

    Raises:
        CheckpointError: The checkpoint lacks some of the model, which transformers would fill with random numbers.
    """
    own, found = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if lacking := sorted(str(key) for key in (*found["missing_keys"], *found["mismatched_keys"])):
        raise CheckpointError(f"{folder} lacks tensors of the model, or has them in other shapes: {listed(lacking)}")
    model.load_state_dict(own.to(device).state_dict(), assign=True)
    model.tie_weights()


def _identity(folder: Path | None, config: Any, dtype: torch.dtype, settings: Settings) -> SourceIdentity:
    revision = settings.model_revision
    if folder is not None and not revision:
        revision = folder_fingerprint(folder)
    return SourceIdentity(
        model_name=folder.resolve().name if folder is not None else str(config.name_or_path),
        dtype=str(dtype).removeprefix("torch."),
        revision=revision,
    )
