"""A double of TensorRT-LLM: its wheel needs its vendor's index and a GPU. No other file plays the engine.

It has what the engine's PyTorch backend has of names, calls and their order where it meets this package: sharded
layers with `tp_size` and a post-load step, runtime aliases, the native loaders of Hugging Face checkpoints at their
import paths, and the engine's own checkpoint loaders of two generations. One rank's output is what that rank's shards
give.
"""

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

WIDTH, LAYERS = 256, 3
_COMPUTED = ".alpha"
"""How the names of parameters end that no checkpoint holds."""


@dataclass(frozen=True)
class Mapping:
    """The engine's: rank, and sizes of its replica."""

    rank: int = 0
    tp_size: int = 1
    pp_size: int = 1
    moe_ep_size: int = 1

    @property
    def local_rank(self) -> int:
        return self.rank


class Linear(nn.Module):
    """A layer whose rows are cut over ranks. Its post-load step makes a scale, and new weights.

    No checkpoint holds `alpha`: it is one until the post-load step changes it, in as many copies as are wanted.
    """

    def __init__(self, mapping: Mapping, copies: int = 1) -> None:
        super().__init__()
        self.tp_size, self.tp_rank = mapping.tp_size, mapping.rank
        self.weight = nn.Parameter(torch.empty(8 * WIDTH // mapping.tp_size, WIDTH), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(8 * WIDTH // mapping.tp_size), requires_grad=False)
        width = len(self.bias) if copies > 1 else 1
        self.alpha = nn.Parameter(torch.empty(copies, width), requires_grad=False)
        self.steps = 0

    def load(self, name: str, full: torch.Tensor) -> None:
        """Take this rank's part of a tensor; while the flag is set, the tensor is that part already."""
        size = 1 if getattr(self, "_weights_presharded", False) else self.tp_size
        own: torch.Tensor = getattr(self, name)
        own.copy_(full.chunk(size)[self.tp_rank if size > 1 else 0])

    def post_load_weights(self) -> None:
        """Quantise: not twice the same, so that weights that went through it before come out wrong."""
        self.steps += 1
        scale = self.weight.abs().amax(1, keepdim=True) / 7
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.weight = nn.Parameter((self.weight / scale).round() + 0.25, requires_grad=False)
        self.bias.mul_(0.5)  # in place, as the engine does with small tensors
        self.alpha.mul_(1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale: torch.Tensor | None = getattr(self, "weight_scale", None)
        return (
            nn.functional.linear(x, self.weight if scale is None else self.weight * scale, self.bias) * self.alpha[-1]
        )


class Layer(nn.Module):
    """A decoder layer; the aliases are set when layers are wired up."""

    def __init__(self, mapping: Mapping, copies: int = 1) -> None:
        super().__init__()
        self.next_layer_layernorm: nn.Module | None = None
        self.next_attn: nn.Module | None = None
        self.input_layernorm = nn.LayerNorm(WIDTH, bias=False)
        self.attn = Linear(mapping, copies)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.attn(self.input_layernorm(x))
        return x + rows.reshape(len(x), -1, WIDTH).mean(1)


class Model(nn.Module):
    """A model of one rank; its memory is there, its values are not."""

    def __init__(self, mapping: Mapping, seed: int = 99, copies: int = 1) -> None:
        super().__init__()
        config = types.SimpleNamespace(architectures=["LlamaForCausalLM"])
        self.model_config = types.SimpleNamespace(mapping=mapping, pretrained_config=config)
        self.layers = nn.ModuleList(Layer(mapping, copies) for _ in range(LAYERS))
        self.register_buffer("rotary", torch.arange(WIDTH) / WIDTH, persistent=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(False)
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                if name.endswith(_COMPUTED):
                    parameter.fill_(1)

    def setup_aliases(self) -> None:
        """Let each layer refer to the one after it."""
        layers: list[Any] = list(self.layers)
        for layer, following in pairwise(layers):
            layer.next_layer_layernorm, layer.next_attn = following.input_layernorm, following.attn

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Put a checkpoint's tensors in place."""
        for name, full in weights.items():
            path, leaf = name.rsplit(".", 1)
            module: Any = self.get_submodule(path)
            if isinstance(module, Linear):
                module.load(leaf, full)
            else:
                getattr(module, leaf).copy_(full)

    def post_load_weights(self) -> None:
        """Wire up and transform."""
        self.setup_aliases()
        for layer in self.layers:
            if isinstance(layer, Layer):
                layer.attn.post_load_weights()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def checkpoint(folder: Path, seed: int = 1) -> Path:
    """Write a whole checkpoint, of which each rank takes its part."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = Model(Mapping(), seed).state_dict().items()
    save_file({name: t for name, t in whole if not name.endswith(_COMPUTED)}, folder / "model.safetensors")
    return folder


def output_of(model: nn.Module) -> list[float]:
    """Return what a rank's shards make of a fixed input."""
    device = next(model.parameters()).device
    with torch.no_grad():
        found: torch.Tensor = model(torch.linspace(-1, 1, 2 * WIDTH, device=device).reshape(2, WIDTH))
    return [float(value) for value in found.flatten()[::37]]


class HfWeightLoader:
    """Reads a checkpoint; knows no `model`."""

    reads = 0

    def load_weights(self, checkpoint_dir: str, mapping: Any) -> dict[str, torch.Tensor]:
        type(self).reads += 1
        found: dict[str, torch.Tensor] = load_file(Path(checkpoint_dir) / "model.safetensors")
        return found


class HfCheckpointLoader:
    """Hands every keyword on to its weight loader."""

    def __init__(self) -> None:
        self.weight_loader = HfWeightLoader()

    def load_weights(self, checkpoint_dir: str, mapping: Any, **kwargs: Any) -> dict[str, Any]:
        return self.weight_loader.load_weights(checkpoint_dir, mapping=mapping, **kwargs)

    def cleanup(self) -> None:
        """Let go of what loading has opened."""


class HfConfigLoader:
    """Reads the configuration of a checkpoint."""

    def load(self, checkpoint_dir: str, **kwargs: Any) -> dict[str, Any]:
        return {"folder": checkpoint_dir, **kwargs}


class AutoCheckpointMapper:
    """Maps the checkpoint's names to the model's."""

    @classmethod
    def get(cls, kind: str, architecture: str) -> "AutoCheckpointMapper":
        assert (kind, architecture) == ("HF", "LlamaForCausalLM")
        return cls()

    def init_model_and_config(self, model: Any, config: Any) -> None:
        self.model, self.config = model, config

    def cleanup(self) -> None:
        self.model = None


_MODULES = {
    "auto_mapper": AutoCheckpointMapper,
    "hf.weight_loader": HfWeightLoader,
    "hf.checkpoint_loader": HfCheckpointLoader,
    "hf.config_loader": HfConfigLoader,
}


def install(mapping: Mapping | None = None) -> None:
    """Let the engine's loaders be found where the engine has them; with a mapping, MPI too, as in its workers."""
    if mapping is not None:
        world = types.SimpleNamespace(Get_rank=lambda: mapping.rank, Get_size=lambda: mapping.tp_size)
        mpi = types.ModuleType("mpi4py.MPI")
        setattr(mpi, "COMM_WORLD", world)  # noqa: B010  # a module made here has no attributes that types know of
        sys.modules["mpi4py.MPI"] = mpi
    root = "tensorrt_llm._torch.models.checkpoints"
    for name, held in _MODULES.items():
        path = f"{root}.{name}".split(".")
        for depth in range(1, len(path) + 1):
            module = sys.modules.setdefault(".".join(path[:depth]), types.ModuleType(".".join(path[:depth])))
            module.__path__ = []
        setattr(sys.modules[".".join(path)], held.__name__, held)


def uninstall() -> None:
    """Take them away again."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("tensorrt_llm", "mpi4py")]:
        del sys.modules[name]


def load_presharded(model: Model, loader: Any, folder: str, mapping: Mapping) -> None:
    """Load as the engine does with LoadFormat.PRESHARDED, the hook for sources included."""
    for module in model.modules():
        if hasattr(module, "tp_size"):
            module._weights_presharded = True  # type: ignore[assignment]
    weights = loader.load_weights(folder, mapping=mapping, model=model)
    if weights:
        loader.get_initialized_weight_mapper(model, model.model_config)
        model.load_weights(weights)
    import_module("modelexpress.trtllm_live_transfer").publish_model_params(model)
    model.post_load_weights()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class LiveMxCheckpointLoader(HfCheckpointLoader):
    """The engine's loader `MX` of the generation that calls `modelexpress.trtllm_live_transfer`."""

    def __init__(self, mx_server_url: str, model_name: str) -> None:
        super().__init__()
        self.url, self.model_name = mx_server_url, model_name
        self.preloaded = self.probed = False

    def load_weights(self, checkpoint_dir: str, mapping: Any, **kwargs: Any) -> dict[str, Any]:
        model = kwargs.pop("model", None)
        module = import_module("modelexpress.trtllm_live_transfer")
        client = module.MxClient(server_url=self.url)
        try:
            identity = module._build_trtllm_identity(model_name=self.model_name)
            self.probed = bool(client.list_sources(identity=identity).instances)
        except (AttributeError, RuntimeError, TimeoutError):
            self.probed = False
        finally:
            client.close()
        try:
            with _environment(MODEL_NAME=self.model_name):
                found = module.MxLiveWeightLoader(mx_server=self.url).load_weights(
                    checkpoint_dir, mapping=mapping, model=model
                )
        except Exception:  # noqa: BLE001  # as the engine does it
            return super().load_weights(checkpoint_dir, mapping=mapping, **kwargs)
        assert found == {}
        self.preloaded = True
        return {}

    def post_load_publish(self, model: Model) -> None:
        """The hook, which this generation calls before the post-load step."""
        with _environment(MODEL_EXPRESS_URL=self.url, MODEL_NAME=self.model_name):
            import_module("modelexpress.trtllm_live_transfer").publish_model_params(model)


def load_live(model: Model, loader: LiveMxCheckpointLoader, folder: str, mapping: Mapping) -> None:
    """Load as the engine does with the checkpoint format `MX` of that generation."""
    weights = loader.load_weights(folder, mapping=mapping, model=model)
    if weights:
        model.load_weights(weights)
    loader.post_load_publish(model)
    model.post_load_weights()


@dataclass(frozen=True)
class SourceIdentity:
    """The engine's own identity of one rank's weights."""

    model_name: str
    rank: int = 0
    tp_size: int = 1
    pp_size: int = 1
    ep_size: int = -1
    dtype: str = "torch.float32"
    format_version: int = 3
    model_fingerprint: str = "f00d"
    transform_abi_id: str | None = "abi-1"
    options: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class DelegatingMxCheckpointLoader(HfCheckpointLoader):
    """The engine's loader `MX` of the generation that calls `modelexpress.engines.trtllm.MxModelLoader`."""

    def __init__(self, mx_server_url: str) -> None:
        super().__init__()
        self.url = mx_server_url
        self.mx_loader: Any = None
        self.preloaded = False

    def load_weights(self, checkpoint_dir: str, mapping: Any, **kwargs: Any) -> dict[str, Any]:
        model = kwargs.pop("model")
        prepare: Callable[[Any], Any] = kwargs.pop("prepare_post_transform_receiver")
        version = kwargs.pop("post_transform_protocol_version")
        self.cleanup()
        self.mx_loader = import_module("modelexpress.engines.trtllm").MxModelLoader(
            model_config=kwargs.pop("model_config"),
            load_config=None,
            checkpoint_loader=self,
            checkpoint_dir=checkpoint_dir,
            source_identity=kwargs.pop("source_identity"),
            p2p_enabled=kwargs.pop("allow_post_transform_weights"),
            native_loader_kwargs=kwargs,
            mapping=mapping,
            prepare_post_transform_receiver=prepare,
            transform_protocol_version=version,
            mx_server_url=self.url,
        )
        weights: dict[str, Any] = self.mx_loader.load_model(model)
        self.preloaded = self.mx_loader.p2p_succeeded
        assert not (self.preloaded and weights)
        assert not self.preloaded or self.mx_loader.transform_protocol_version == version
        return weights

    def cleanup(self) -> None:
        if self.mx_loader is not None:
            self.mx_loader.cleanup()


def load_delegated(
    model: Model, loader: DelegatingMxCheckpointLoader, folder: str, identity: SourceIdentity, **options: Any
) -> None:
    """Load as the engine does with the checkpoint format `MX` of that generation; publish when all is done."""
    given: dict[str, Any] = {
        "model": model,
        "model_config": model.model_config,
        "source_identity": identity,
        "allow_post_transform_weights": True,
        "prepare_post_transform_receiver": receiver_structure,
        "post_transform_protocol_version": 1,
    }
    weights = loader.load_weights(folder, mapping=model.model_config.mapping, **(given | options))
    if not loader.preloaded:
        model.load_weights(weights)
        model.post_load_weights()
    loader.mx_loader.publish_model(model)


def receiver_structure(model: Model) -> None:
    """Give a model what the post-load step leaves of tensors, without values."""
    model.setup_aliases()
    for layer in model.layers:
        linear: Any = layer.get_submodule("attn")
        scale = torch.empty(len(linear.weight), 1, device=linear.weight.device)
        linear.weight_scale = nn.Parameter(scale, requires_grad=False)
        linear.weight = nn.Parameter(torch.empty_like(linear.weight), requires_grad=False)
