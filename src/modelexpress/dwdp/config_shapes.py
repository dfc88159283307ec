"""Shapes of experts from the config.json of a model of transformers.

The fields are those that transformers 5 writes for Qwen3-MoE, Mixtral, DeepSeek-V3 and gpt-oss; models that use the
same fields are read the same way.
"""

from collections.abc import Mapping
from typing import Any

from modelexpress.dwdp.shapes import BITS, LayerShape, ModelShape, Work, carried_bytes, gated_experts, gated_flop
from modelexpress.errors import ConfigurationError

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_TOP = ("num_experts_per_tok", "experts_per_token")


def shape_of_config(config: Mapping[str, Any], dtype: str | None = None) -> ModelShape:
    """Return the experts of a model.

    Args:
        config: The object in its config.json.
        dtype: Of the experts, a key of `BITS`; None: what the configuration says.

    Raises:
        ConfigurationError: A field is missing or of no use, or the quantisation is not one that is known.
    """
    fields = _Fields(config)
    hidden, intermediate = fields.integer("hidden_size"), fields.integer("moe_intermediate_size", "intermediate_size")
    bias = "bfloat16" if fields.kind == "gpt_oss" else None
    chosen, block = (dtype, None) if dtype else _stored_as(fields)
    experts = gated_experts(hidden, intermediate, chosen, bias=bias, scale_block=block)
    count = fields.integer(*_EXPERTS)
    layers = tuple(LayerShape(number, count, experts) for number in _layers(fields))
    if not layers:
        raise ConfigurationError(
            f"config.json of {fields.kind} describes no layer with experts: there is none to share"
        )
    return ModelShape(f"config.json of {fields.kind}, {chosen}", layers, work_of_config(config))


def work_of_config(config: Mapping[str, Any]) -> Work:
    """Return the arithmetic of a layer.

    Raises:
        ConfigurationError: A field is missing or of no use.
    """
    fields = _Fields(config)
    hidden, intermediate = fields.integer("hidden_size"), fields.integer("moe_intermediate_size", "intermediate_size")
    routed, apart = fields.integer(*_TOP), fields.optional("shared_expert_intermediate_size")
    inner = intermediate * (routed + fields.optional("n_shared_experts")) + apart
    projections, per_key = _attention(fields, hidden)
    sliding = "sliding_attention" in (fields.get("layer_types") or ())
    window = fields.optional("sliding_window") or None if sliding else None
    row, carried = gated_flop(hidden, intermediate, 1), carried_bytes(hidden, inner, routed)
    return Work(gated_flop(hidden, inner, 1), projections, per_key, window, routed, row, carried)


def depth_of_config(config: Mapping[str, Any]) -> int:
    """Return the number of layers that a forward goes through.

    Raises:
        ConfigurationError: The field is missing or of no use.
    """
    return _Fields(config).integer("num_hidden_layers")


class _Fields:
    """The fields of a configuration; those of a model that also sees are within `text_config`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        inner = config.get("text_config")
        self._config = config | inner if isinstance(config, dict) and isinstance(inner, dict) else config
        self.kind = str(self.get("model_type") or "a model")

    def get(self, name: str) -> Any:
        return self._config.get(name)

    def integer(self, *names: str) -> int:
        """Return the first of these fields that is there, which must be positive."""
        for name in names:
            if (value := self.get(name)) is not None:
                if not isinstance(value, int) or value < 1:
                    raise ConfigurationError(f"config.json says {name}={value!r}: a positive number is needed")
                return value
        raise ConfigurationError(
            f"config.json of {self.kind} has no {' or '.join(names)}: a model with experts has it; for another kind "
            "of model give --experts, --hidden, --intermediate, --layers and --top-k"
        )

    def optional(self, name: str) -> int:
        return self.integer(name) if self.get(name) else 0


def _layers(fields: _Fields) -> list[int]:
    """Return the numbers of the layers with experts: those that no field makes dense."""
    dense = fields.get("mlp_only_layers") or ()
    step, every = fields.optional("decoder_sparse_step") or 1, fields.optional("moe_layer_freq") or 1
    first = fields.optional("first_k_dense_replace")
    return [
        number
        for number in range(fields.integer("num_hidden_layers"))
        if number >= first and number not in dense and (number + 1) % step == 0 and number % every == 0
    ]


def _stored_as(fields: _Fields) -> tuple[str, tuple[int, int] | None]:
    """Return the dtype of the experts, and the rows and columns of a block that shares a scale."""
    quantised = fields.get("quantization_config")
    if isinstance(quantised, Mapping):
        method, block = quantised.get("quant_method"), quantised.get("weight_block_size")
        if method == "mxfp4":
            return "mxfp4", None
        if method == "fp8" and isinstance(block, list) and len(block) == 2:
            return "float8_e4m3fn", (int(block[0]), int(block[1]))
        raise ConfigurationError(
            f"config.json says quant_method={method!r} (weight_block_size={block!r}), whose shapes are not known here: "
            f"put the safetensors files beside it, or give --dtype ({', '.join(BITS)})"
        )
    return str(fields.get("dtype") or fields.get("torch_dtype") or "bfloat16"), None


def _attention(fields: _Fields, hidden: int) -> tuple[float, float]:
    """Return the FLOP of a token's projections, and those for each key that it looks at."""
    heads = fields.optional("num_attention_heads")
    if not heads:
        return 0.0, 0.0
    if not fields.get("kv_lora_rank"):
        width = fields.optional("head_dim") or hidden // heads
        pairs = fields.optional("num_key_value_heads") or heads
        return 2 * hidden * width * (2 * heads + 2 * pairs), 4 * heads * width
    # Multi-head latent attention (arXiv 2405.04434, section 2.1): queries, keys and values go through low ranks.
    rotated, plain, value = (fields.integer(n) for n in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    low, key = fields.integer("kv_lora_rank"), rotated + plain
    queries = fields.optional("q_lora_rank")
    weights = queries * (hidden + heads * key) if queries else hidden * heads * key
    weights += hidden * (low + rotated) + low * heads * (plain + value) + heads * value * hidden
    return 2 * weights, 2 * heads * (key + value)
