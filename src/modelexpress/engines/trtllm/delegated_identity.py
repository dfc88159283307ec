"""The identity of weights after the engine's transforms: the engine's own identity is part of it, to the letter."""

import hashlib
import json
from dataclasses import replace
from typing import Any

from modelexpress.engines.trtllm.naming import model_name_of
from modelexpress.errors import IdentityError
from modelexpress.identity import BackendFramework, SourceIdentity, package_version

LAYOUT = "post_transform"
"""At which point of loading the weights are shared."""

_OWN = "trtllm_source_identity"
_DIGEST = "trtllm_source_identity_digest"
_OF_ONE_SHARD = frozenset(
    ("rank", "tp_size", "pp_size", "ep_size", "model_fingerprint", "parallel_fingerprint", "shard_fingerprint")
)
"""Fields of the engine's identity that differ between shards of the same weights: the model's one is of its shapes."""


def delegated_identity(
    source_identity: Any, transform_protocol_version: int | None, revision: str = ""
) -> SourceIdentity:
    """Return the identity of one rank's transformed weights.

    Two workers have the same one only where the engine's own identities are equal in every field but the model's
    name, which may be a path and is carried beside them, where both transform in the same way, and where the revision
    is the same.

    Args:
        source_identity: The engine's, with `to_dict()`.
        transform_protocol_version: Of the engine's transforms.
        revision: What tells this checkpoint from others of its name: of a folder, nothing but the last part counts.

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
    # Source ids take no notice of case; the engine does.
    exact = hashlib.sha256(f"{name}\n{revision}\n{abi}\n{own}".encode()).hexdigest()
    return SourceIdentity(
        mx_version=package_version(),
        model_name=name,
        backend_framework=BackendFramework.TRT_LLM,
        tensor_parallel_size=_size(source_identity, "tp_size"),
        pipeline_parallel_size=_size(source_identity, "pp_size"),
        expert_parallel_size=_size(source_identity, "ep_size"),
        dtype=str(getattr(source_identity, "dtype", None) or "").removeprefix("torch."),
        revision=revision,
        extra_parameters={
            _OWN: own,
            _DIGEST: exact,
            "trtllm_weight_layout": LAYOUT,
            "trtllm_transform_protocol_version": str(transform_protocol_version),
            "trtllm_transform_abi_id": str(abi),
        },
    )


def without_sizes(identity: SourceIdentity) -> SourceIdentity:
    """Return an identity without what the engine says of one shard: shards of the same weights have this in common.

    The sizes that are fields of the identity stay.

    Args:
        identity: As anybody may have published it.
    """
    own = dict(identity.extra_parameters)
    try:
        fields = json.loads(own.get(_OWN, ""))
    except (ValueError, RecursionError):
        return identity
    if not isinstance(fields, dict):
        return identity
    kept = {name: value for name, value in fields.items() if name not in _OF_ONE_SHARD}
    return replace(identity, extra_parameters=own | {_OWN: _sorted_json(kept), _DIGEST: ""})


def _sorted_json(fields: dict[str, Any]) -> str:
    try:
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise IdentityError(f"TensorRT-LLM's identity cannot be written as JSON: {error}") from error


def _size(source_identity: Any, name: str) -> int:
    return max(int(getattr(source_identity, name, 1) or 1), 1)
