"""Modules that tvm-ffi compiled from C++ and CUDA sources."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import ContentKeyedKind, home, is_litter
from modelexpress.identity import SourceType


class TvmFfi(ContentKeyedKind):
    """One folder for each module, named after the hash of its sources and flags, built by ninja.

    Source: the documentation of `tvm_ffi.cpp.build`, which names TVM_FFI_CACHE_DIR and its default.
    """

    name = "tvm_ffi"
    source_type = SourceType.TVM_FFI_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        return Path(environ.get("TVM_FFI_CACHE_DIR") or home(environ) / ".cache" / "tvm-ffi")

    def belongs(self, path: PurePosixPath) -> bool:
        return not is_litter(path)

    def comes_last(self, path: PurePosixPath) -> bool:
        return path.suffix == ".so"
