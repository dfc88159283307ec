"""The kinds of caches that travel. A new one is a small file here, and a line below."""

from modelexpress.artifacts.kind import Kind
from modelexpress.artifacts.kinds.cute_dsl import CuteDsl
from modelexpress.artifacts.kinds.deep_gemm import DeepGemm
from modelexpress.artifacts.kinds.flashinfer import FlashInfer
from modelexpress.artifacts.kinds.inductor_headers import InductorHeaders
from modelexpress.artifacts.kinds.tilelang import TileLang
from modelexpress.artifacts.kinds.torch_compile import TorchCompile
from modelexpress.artifacts.kinds.triton import Triton
from modelexpress.artifacts.kinds.tvm_ffi import TvmFfi

KINDS: tuple[Kind, ...] = (
    TorchCompile(),
    InductorHeaders(),
    Triton(),
    DeepGemm(),
    TileLang(),
    CuteDsl(),
    FlashInfer(),
    TvmFfi(),
)
