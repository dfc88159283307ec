"""tvm-ffi's cache does what every kind of cache must do."""

from collections.abc import Mapping

from modelexpress.artifacts.kinds.tvm_ffi import TvmFfi
from tests.conformance.kind import KindConformance


class TestTvmFfi(KindConformance):
    kind = TvmFfi()
    entries = ("op_ab12/main.cpp", "op_ab12/build.ninja", "op_ab12/.ninja_log", "op_ab12/op.so")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        return {"/x/ffi": {"TVM_FFI_CACHE_DIR": "/x/ffi"}, "/srv/somebody/.cache/tvm-ffi": {}}
