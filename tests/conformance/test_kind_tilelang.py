"""TileLang's cache does what every kind of cache must do."""

from collections.abc import Mapping

from modelexpress.artifacts.kinds.tilelang import TileLang
from tests.conformance.kind import KindConformance


class TestTileLang(KindConformance):
    kind = TileLang()
    entries = ("ab12/kernel.cu", "ab12/kernel_lib.so", "ab12/params.pkl")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        return {"/x/tl": {"TILELANG_CACHE_DIR": "/x/tl"}, "/srv/somebody/.tilelang/cache": {}}
