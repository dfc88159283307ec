"""Tensor sets of real models, by shape: what the GPU benchmarks move. All are bfloat16."""

from collections.abc import Mapping
from types import MappingProxyType

Shapes = Mapping[str, tuple[int, ...]]


def _dense() -> dict[str, tuple[int, ...]]:
    """Return the shapes of Llama-3.1-8B: 291 tensors, 16.06 GB."""
    hidden, intermediate, vocabulary, kv = 4096, 14336, 128256, 8 * 128
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(32):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (intermediate, hidden),
            prefix + "mlp.up_proj.weight": (intermediate, hidden),
            prefix + "mlp.down_proj.weight": (hidden, intermediate),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def _experts() -> dict[str, tuple[int, ...]]:
    """Return the shapes of Qwen3-30B-A3B with one tensor per expert matrix: 18,867 tensors, 61.06 GB."""
    hidden, intermediate, vocabulary, heads, kv, head = 2048, 768, 151936, 32, 4, 128
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(48):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (heads * head, hidden),
            prefix + "self_attn.k_proj.weight": (kv * head, hidden),
            prefix + "self_attn.v_proj.weight": (kv * head, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, heads * head),
            prefix + "self_attn.q_norm.weight": (head,),
            prefix + "self_attn.k_norm.weight": (head,),
            prefix + "mlp.gate.weight": (128, hidden),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
        for expert in range(128):
            shapes |= {
                f"{prefix}mlp.experts.{expert}.gate_proj.weight": (intermediate, hidden),
                f"{prefix}mlp.experts.{expert}.up_proj.weight": (intermediate, hidden),
                f"{prefix}mlp.experts.{expert}.down_proj.weight": (hidden, intermediate),
            }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


SETS: Mapping[str, Shapes] = MappingProxyType({"dense": _dense(), "experts": _experts()})
