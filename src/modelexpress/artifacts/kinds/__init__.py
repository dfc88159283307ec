"""The kinds of caches that travel. A new one is a small file here, and a line below."""

from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.kinds.cute_dsl import CuteDsl
from modelexpress.artifacts.kinds.deep_gemm import DeepGemm
from modelexpress.artifacts.kinds.flashinfer import FlashInfer
from modelexpress.artifacts.kinds.tilelang import TileLang
from modelexpress.artifacts.kinds.torch_compile import TorchCompile
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.kinds.tvm_ffi import TvmFfi
from modelexpress.errors import ArtifactInvalid, ConfigurationError
from modelexpress.identity import SourceType

KINDS: tuple[Kind, ...] = (
    TorchCompile(),
    Triton(),
    DeepGemm(),
    TileLang(),
    CuteDsl(),
    FlashInfer(),
    TvmFfi(),
)


def kind_named(name: str) -> Kind:
    """Return the kind of a name.

    Raises:
        ConfigurationError: There is none.
    """
    for kind in KINDS:
        if kind.name == name:
            return kind
    known = ", ".join(kind.name for kind in KINDS)
    raise ConfigurationError(f"{name!r:.100} is no kind of cache: use one of {known}")


def kind_of(source_type: SourceType) -> Kind:
    """Return the kind that the protocol calls so.

    Raises:
        ArtifactInvalid: It is none whose files are installed.
    """
    for kind in KINDS:
        if kind.source_type is source_type:
            return kind
    raise ArtifactInvalid(f"material of the type {source_type.name} is no cache; its files are not installed")
