"""Triton's compiled kernels."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import ContentKeyedKind, home, is_litter
from modelexpress.artifacts.kinds.triton_groups import is_group, relocated_group
from modelexpress.identity import SourceType


class Triton(ContentKeyedKind):
    """One folder for each kernel, named after the hash of source, arguments, options, compiler and device.

    Source of the variables: `triton.knobs` of Triton 3.6. Files are written into folders `tmp.pid_…` and renamed.
    """

    name = "triton"
    source_type = SourceType.TRITON_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        if folder := environ.get("TRITON_CACHE_DIR"):
            return Path(folder)
        return Path(environ.get("TRITON_HOME") or home(environ), ".triton", "cache")

    def belongs(self, path: PurePosixPath) -> bool:
        return not is_litter(path)

    def comes_last(self, path: PurePosixPath) -> bool:
        return is_group(path)

    def localised(self, path: PurePosixPath, content: memoryview, root: Path) -> bytes | None:
        return relocated_group(path, content, root)
