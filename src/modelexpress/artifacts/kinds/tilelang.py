"""TileLang's compiled kernels and the results of its tuner."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import ContentKeyedKind, home, is_litter
from modelexpress.identity import SourceType

_PARAMETERS = frozenset({"params.pkl", "best_config.json"})


class TileLang(ContentKeyedKind):
    """One folder for each kernel, named after the hash of its program and options.

    Source: TileLang's documentation of its autotuner names TILELANG_CACHE_DIR; the default is the one of
    `tilelang.env`. Kernels are built in the folder `tmp` within.
    """

    name = "tilelang"
    source_type = SourceType.TILELANG_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        return Path(environ.get("TILELANG_CACHE_DIR") or home(environ) / ".tilelang" / "cache")

    def belongs(self, path: PurePosixPath) -> bool:
        return not is_litter(path)

    def comes_last(self, path: PurePosixPath) -> bool:
        return path.name in _PARAMETERS
