"""DeepGEMM's compiled kernels."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import ContentKeyedKind, home, is_litter
from modelexpress.identity import SourceType

_FOLDERS = ("DG_JIT_CACHE_DIR", "DEEP_GEMM_CACHE_DIR", "SGLANG_DG_CACHE_DIR")


class DeepGemm(ContentKeyedKind):
    """One folder for each kernel, named after the hash of its source and of the compiler's options.

    Source of the variables: DeepGEMM's README for DG_JIT_CACHE_DIR and its default; vLLM and SGLang set it from
    variables of their own before they import DeepGEMM.
    """

    name = "deep_gemm"
    source_type = SourceType.DEEP_GEMM_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        for variable in _FOLDERS:
            if folder := environ.get(variable):
                return Path(folder)
        if folder := environ.get("VLLM_CACHE_ROOT"):
            return Path(folder, "deep_gemm")
        return home(environ) / ".deep_gemm"

    def belongs(self, path: PurePosixPath) -> bool:
        return not is_litter(path)

    def comes_last(self, path: PurePosixPath) -> bool:
        # The binary is what a look-up asks for; its source is beside it.
        return path.suffix == ".cubin"
