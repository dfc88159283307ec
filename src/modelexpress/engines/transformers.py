"""transformers: a model for a script that uses no engine, with its weights from a peer."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from modelexpress.engines.expert_rows import keep_rows
from modelexpress.engines.fingerprint import folder_fingerprint
from modelexpress.errors import CheckpointError
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from modelexpress.weights.chosen_rows import RowRanges
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
    rows: range | RowRanges | None = None,
    worker: Worker | None = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
) -> "PreTrainedModel":
    """Return a model of transformers whose weights come from a peer, else from the folder.

    The model is built without memory for its parameters; what it computes for itself, such as rotary frequencies, is
    computed here. Experts that a checkpoint has one by one are read into their stacks. What else transformers converts,
    such as MXFP4, it reads itself, and the whole model.

    Args:
        config_or_folder: A configuration, which needs a peer, or a checkpoint folder, whose weights are read where no
            peer has them. A folder may hold a configuration and no weights.
        identity: What the weights are; None: the folder's name or the configuration's `name_or_path`, the dtype, and
            MX_MODEL_REVISION, or else what tells this folder's weights from others.
        registry: HOST:PORT of the registry; None takes it from the environment.
        dtype: Of the weights; None: the one in the configuration.
        device: Where the weights go.
        model_class: Of the model; None: that of causal language models, AutoModelForCausalLM.
        rows: Experts that this process shall have, of every layer: the model has room for these alone, and nothing else
            of experts is read. Or, by names of tensors, (start, stop) of their rows. Such a model is no source for
            others: it goes without `worker`.
        worker: Makes this process a source of the model until it is closed.
        progress: Told the bytes in place and the bytes in all.
        settings: Read from the environment when None.

    Raises:
        LoadError: Neither a peer nor the folder had the weights.
        ConfigurationError: `rows` are none of the model's, or were given together with `worker`.
        ExpertsUnsupported: The model's experts are not stacked.
        Exception: No peer had them, and transformers could not read the folder either.

    Example:
        >>> model = load_from_peer("llama/", registry="localhost:8001", device="cuda")  # doctest: +SKIP
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    settings = settings or Settings.read()
    folder = Path(config_or_folder) if isinstance(config_or_folder, str | Path) else None
    config: Any = config_or_folder if folder is None else AutoConfig.from_pretrained(folder)
    wanted = dtype or config.dtype or torch.get_default_dtype()
    kind = model_class or AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model: Any = kind.from_config(config, dtype=wanted)
    model.tie_weights()  # parameters without memory are new ones, each by itself
    chosen = None if rows is None else keep_rows(model, rows)
    storage = folder if folder is not None and any(folder.glob("*.safetensors")) else None
    report = load(
        model,
        identity or _identity(folder, config, wanted, settings),
        registry=registry,
        storage=storage,
        # Transformers would read all of the model.
        native=None if storage is None or chosen else lambda: _fill(model, kind, storage, wanted, device),
        device=device,
        worker=worker,
        rows=chosen,
        progress=progress,
        settings=settings,
    )
    logger.info("%s", report)
    ready: PreTrainedModel = model.to(device).eval()  # its parameters are there: this moves what it computed
    if folder is not None and (folder / GENERATION_CONFIG_NAME).exists():
        ready.generation_config = GenerationConfig.from_pretrained(folder)
    return ready


def _fill(model: Any, kind: Any, folder: Path, dtype: torch.dtype, device: torch.device | str) -> None:
    """Fill a model as transformers does: where it computes tensors from the checkpoint's.

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
