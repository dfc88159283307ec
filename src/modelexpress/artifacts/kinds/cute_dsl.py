"""Kernels that CUTLASS's CuTe DSL compiled."""

import getpass
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import ContentKeyedKind, is_litter
from modelexpress.identity import SourceType


class CuteDsl(ContentKeyedKind):
    """One file for each kernel, named after the hash of its program, its environment and the DSL's version.

    Source: the page "JIT Caching" of the CUTLASS documentation, and the notes of release 4.3.2, which introduced
    CUTE_DSL_CACHE_DIR.
    """

    name = "cute_dsl"
    source_type = SourceType.CUTE_DSL_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        if folder := environ.get("CUTE_DSL_CACHE_DIR"):
            return Path(folder)
        user = environ.get("USER") or getpass.getuser()
        return Path(tempfile.gettempdir(), user, "cutlass_python_cache")

    def belongs(self, path: PurePosixPath) -> bool:
        return not is_litter(path)
