"""FlashInfer's cache does what every kind of cache must do."""

from collections.abc import Mapping

from modelexpress.artifacts.kinds.flashinfer import FlashInfer
from tests.conformance.kind import KindConformance


class TestFlashInfer(KindConformance):
    kind = FlashInfer()
    entries = ("0.7/90a/generated/op/op.cu", "0.7/90a/cached_ops/op/.ninja_log", "0.7/90a/cached_ops/op/op.so")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        return {
            "/x/.cache/flashinfer": {"FLASHINFER_WORKSPACE_BASE": "/x"},
            "/srv/somebody/.cache/flashinfer": {},
        }
