"""Which material is interchangeable: `SourceIdentity` and the source id derived from it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import IntEnum
from importlib import metadata
from typing import Any, TypeVar

from modelexpress.errors import IdentityError


class SourceType(IntEnum):
    """What the material is; the numbers are those of the protocol."""

    WEIGHTS = 0
    LORA = 1
    CUDA_GRAPH = 2
    TORCH_COMPILE_CACHE = 3
    TRITON_CACHE = 4
    DEEP_GEMM_CACHE = 5
    TILELANG_CACHE = 6
    CUTE_DSL_CACHE = 7
    FLASHINFER_CACHE = 8
    TVM_FFI_CACHE = 9


class BackendFramework(IntEnum):
    """The engine that laid the material out; the numbers are those of the protocol."""

    UNKNOWN = 0
    VLLM = 1
    SGLANG = 2
    TRT_LLM = 3


_E = TypeVar("_E", SourceType, BackendFramework)

_PREFIX = {SourceType: "MX_SOURCE_TYPE_", BackendFramework: "BACKEND_FRAMEWORK_"}

_ONLY_WHEN_SET = (
    "backend_framework_version",
    "torch_version",
    "cuda_version",
    "triton_version",
    "gpu_arch",
    "compile_config_digest",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceIdentity:
    """Every field that decides whether two workers' material is interchangeable.

    Field names and numbers are those of `model_express.p2p.SourceIdentity`; enums take their numbers and
    their names, with or without the protocol's prefix. Strings compare without regard to case.

    Raises:
        IdentityError: A field has a type or value that the protocol cannot carry.

    Example:
        >>> SourceIdentity(model_name="q/w", mx_version="1.0.0", extra_parameters={"a": "y"}).source_id
        '5c612e52ba39c771'
    """

    mx_version: str = ""
    mx_source_type: SourceType = SourceType.WEIGHTS
    model_name: str = ""
    backend_framework: BackendFramework = BackendFramework.UNKNOWN
    tensor_parallel_size: int = 0
    pipeline_parallel_size: int = 0
    expert_parallel_size: int = 0
    dtype: str = ""
    quantization: str = ""
    extra_parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    revision: str = ""
    backend_framework_version: str = ""
    torch_version: str = ""
    cuda_version: str = ""
    triton_version: str = ""
    gpu_arch: str = ""
    compile_config_digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mx_source_type", _enum(SourceType, self.mx_source_type))
        object.__setattr__(self, "backend_framework", _enum(BackendFramework, self.backend_framework))
        object.__setattr__(self, "extra_parameters", _parameters(self.extra_parameters))
        for field in dataclasses.fields(self):
            _check(field.name, field.type, getattr(self, field.name))

    def __hash__(self) -> int:
        return hash(self.source_id)

    def canonical_json(self) -> str:
        """Return the JSON text that the source id is computed from (wire protocol, "Source id")."""
        fields: dict[str, Any] = {
            field.name: _canonical(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        for name in _ONLY_WHEN_SET:
            if not fields[name]:
                del fields[name]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @property
    def source_id(self) -> str:
        """The first 16 hex digits of SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]


def _enum(kind: type[_E], value: Any) -> _E:
    try:
        if not isinstance(value, str):
            return kind(value)
        return kind[value.upper().removeprefix(_PREFIX[kind])]
    except (KeyError, ValueError):
        allowed = ", ".join(f"{member.name.lower()} ({member.value})" for member in kind)
        raise IdentityError(f"{value!r} is no {kind.__name__}: use one of {allowed}") from None


def _parameters(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        raise IdentityError(f"extra_parameters must map strings to strings, not {value!r}")
    return dict(value)


def _check(name: str, annotation: Any, value: Any) -> None:
    if annotation is str and not isinstance(value, str):
        raise IdentityError(f"{name} must be a string, not {value!r}")
    if annotation is int and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32):
        raise IdentityError(f"{name} must be a whole number from 0 to {2**32 - 1}, not {value!r}")


def _canonical(value: Any) -> Any:
    if isinstance(value, str):
        return value.lower()
    if isinstance(value, dict):
        lowered: dict[str, str] = {}
        for key in sorted(value):
            lowered.setdefault(key.lower(), value[key].lower())
        return lowered
    return int(value)


def package_version() -> str:
    """Return the version of this package that is installed, for `mx_version`; "source" where it runs uninstalled."""
    try:
        return metadata.version("modelexpress")
    except metadata.PackageNotFoundError:
        return "source"
