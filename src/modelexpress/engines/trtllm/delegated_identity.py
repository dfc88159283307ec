"""The identity of weights after the engine's transforms: the engine's own identity is part of it, to the letter."""

import hashlib
import json
from typing import Any

from modelexpress.engines.trtllm.naming import model_name_of
from modelexpress.errors import IdentityError
from modelexpress.identity import BackendFramework, SourceIdentity, package_version

LAYOUT = "post_transform"
"""At which point of loading the weights are shared."""


def delegated_identity(source_identity: Any, transform_protocol_version: int | None) -> SourceIdentity:
    """Return the identity of one rank's transformed weights.

    Two workers have the same one only where the engine's own identities are equal in every field but the model's
    name, which may be a path and is carried beside them, and where both transform in the same way.

    Args:
        source_identity: The engine's, with `to_dict()`.
        transform_protocol_version: Of the engine's transforms.

    Raises:
        IdentityError: The engine tells too little to be sure that two workers fit.
    """
    if not callable(getattr(source_identity, "to_dict", None)):
        raise IdentityError(f"a {type(source_identity).__name__} is no identity of TensorRT-LLM: it has no to_dict()")
    if transform_protocol_version is None:
        raise IdentityError("TensorRT-LLM names no version of its transforms")
    fields = dict(source_identity.to_dict())
    abi = getattr(source_identity, "transform_abi_id", None) or fields.get("transform_abi_id")
    if not abi:
        raise IdentityError("TensorRT-LLM's identity names no ABI of its transforms (transform_abi_id)")
    name = model_name_of(str(fields.pop("model_name", None) or "unknown"))
    own = _sorted_json(fields)
    return SourceIdentity(
        mx_version=package_version(),
        model_name=name,
        backend_framework=BackendFramework.TRT_LLM,
        tensor_parallel_size=_size(source_identity, "tp_size"),
        pipeline_parallel_size=_size(source_identity, "pp_size"),
        expert_parallel_size=_size(source_identity, "ep_size"),
        dtype=str(getattr(source_identity, "dtype", None) or "").removeprefix("torch."),
        extra_parameters={
            "trtllm_source_identity": own,
            # Source ids take no notice of case; the engine does.
            "trtllm_source_identity_digest": hashlib.sha256(f"{name}\n{abi}\n{own}".encode()).hexdigest(),
            "trtllm_weight_layout": LAYOUT,
            "trtllm_transform_protocol_version": str(transform_protocol_version),
            "trtllm_transform_abi_id": str(abi),
        },
    )


def _sorted_json(fields: dict[str, Any]) -> str:
    try:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise IdentityError(f"TensorRT-LLM's identity cannot be written as JSON: {error}") from error


def _size(source_identity: Any, name: str) -> int:
    return max(int(getattr(source_identity, name, 1) or 1), 1)
