"""FlashInfer's compiled operators."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import ContentKeyedKind, home, is_litter
from modelexpress.identity import SourceType


class FlashInfer(ContentKeyedKind):
    """Folders by version and architecture, with generated sources and the shared objects that ninja built of them.

    ninja builds again what is younger than its record says: installed files keep the times of their source.
    Source of the variable: FlashInfer's installation guide; `.cache/flashinfer` below it is FlashInfer's own name.
    """

    name = "flashinfer"
    source_type = SourceType.FLASHINFER_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        return Path(environ.get("FLASHINFER_WORKSPACE_BASE") or home(environ), ".cache", "flashinfer")

    def belongs(self, path: PurePosixPath) -> bool:
        return not is_litter(path)

    def comes_last(self, path: PurePosixPath) -> bool:
        return path.suffix == ".so"
