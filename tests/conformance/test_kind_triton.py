"""Triton's cache does what every kind of cache must do."""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kinds.triton import Triton
from tests.conformance.kind import KindConformance


class TestTriton(KindConformance):
    kind = Triton()
    entries = ("KEY/kernel.cubin", "KEY/kernel.json", "KEY/__grp__kernel.json")

    def roots(self) -> Mapping[str, Mapping[str, str]]:
        return {
            "/x/triton": {"TRITON_CACHE_DIR": "/x/triton", "TRITON_HOME": "/x/home"},
            "/x/home/.triton/cache": {"TRITON_HOME": "/x/home"},
            "/srv/somebody/.triton/cache": {},
        }

    def test_a_group_names_its_neighbours_wherever_the_cache_is(self, tmp_path: Path) -> None:
        group = {"child_paths": {"k.cubin": "/elsewhere/KEY/k.cubin", "../../evil": "/etc/passwd", "..": "/etc"}}
        content = memoryview(json.dumps(group).encode())
        here = self.kind.localised(PurePosixPath("KEY/__grp__k.json"), content, tmp_path)
        assert here is not None
        assert json.loads(here) == {"child_paths": {"k.cubin": str(tmp_path / "KEY" / "k.cubin")}}
        assert self.kind.localised(PurePosixPath("KEY/k.json"), content, tmp_path) is None
