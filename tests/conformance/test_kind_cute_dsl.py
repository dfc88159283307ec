"""The CuTe DSL's cache does what every kind of cache must do."""

import tempfile
from collections.abc import Mapping

from modelexpress.artifacts.kinds.cute_dsl import CuteDsl
from tests.conformance.kind import KindConformance


class TestCuteDsl(KindConformance):
    kind = CuteDsl()
    entries = ("ab12.mlir", "cd34.mlir")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        return {
            "/x/cute": {"CUTE_DSL_CACHE_DIR": "/x/cute"},
            f"{tempfile.gettempdir()}/somebody/cutlass_python_cache": {},
        }
