"""The headers that torch's inductor precompiles do what every kind of cache must do."""

import tempfile
from collections.abc import Mapping
from pathlib import PurePosixPath

from modelexpress.artifacts.kinds.inductor_headers import InductorHeaders
from modelexpress.artifacts.kinds.torch_compile import TorchCompile
from tests.conformance.kind import BASE, HOME, KindConformance


class TestInductorHeaders(KindConformance):
    kind = InductorHeaders()
    entries = ("cdqc.h", "cdqc.h.gch")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        folder = f"{tempfile.gettempdir()}/torchinductor_somebody/precompiled_headers"
        return {
            folder: {"TORCHINDUCTOR_CACHE_DIR": "/x/inductor", "VLLM_CACHE_ROOT": "/x/vllm"},
            folder.replace("somebody", "a_b"): {"LOGNAME": "a/b"},
        }

    def test_the_other_part_of_the_cache_leaves_them_out(self) -> None:
        whole = TorchCompile()
        for entry in self.entries:
            path = (self.kind.root(HOME) / entry).relative_to(whole.root(HOME))
            assert not whole.belongs(PurePosixPath(path))
        assert whole.identity(BASE).source_id != self.kind.identity(BASE).source_id
