"""DeepGEMM's cache does what every kind of cache must do."""

from collections.abc import Mapping

from modelexpress.artifacts.kinds.deep_gemm import DeepGemm
from tests.conformance.kind import KindConformance


class TestDeepGemm(KindConformance):
    kind = DeepGemm()
    entries = ("cache/kernel.gemm.ab12/kernel.cu", "cache/kernel.gemm.ab12/kernel.cubin")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        return {
            "/x/dg": {"DG_JIT_CACHE_DIR": "/x/dg", "DEEP_GEMM_CACHE_DIR": "/y", "VLLM_CACHE_ROOT": "/z"},
            "/y": {"DEEP_GEMM_CACHE_DIR": "/y", "VLLM_CACHE_ROOT": "/z"},
            "/z/deep_gemm": {"VLLM_CACHE_ROOT": "/z"},
            "/srv/somebody/.deep_gemm": {},
        }
