"""The C++ headers that torch's inductor compiles once, ahead of all kernels that it generates for processors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import ContentKeyedKind, is_litter
from modelexpress.artifacts.kinds.inductor_folders import HEADERS, default_folder
from modelexpress.identity import SourceIdentity, SourceType


class InductorHeaders(ContentKeyedKind):
    """Headers of some 150 MB, named after their text, the compiler and its options: ten seconds of work each.

    Inductor wants them before it looks whether a kernel is there already, and then only looks whether they exist. The
    protocol has no type of their own for them: they are a part of torch.compile's cache.
    Source: `_precompile_header` in `torch._inductor.codecache` of torch 2.13. Those of clang are left out: it refuses
    a header whose sources have other times than where it was made; gcc falls back to the text.
    """

    name = "inductor_headers"
    source_type = SourceType.TORCH_COMPILE_CACHE
    shows_use = False

    def root(self, environ: Mapping[str, str]) -> Path:
        return default_folder(environ) / HEADERS

    def belongs(self, path: PurePosixPath) -> bool:
        return path.name.endswith((".h", ".h.gch")) and not is_litter(path)

    def comes_last(self, path: PurePosixPath) -> bool:
        return path.suffix == ".gch"

    def identity(self, base: SourceIdentity, *, compile_config_digest: str = "") -> SourceIdentity:
        keyed = super().identity(base, compile_config_digest=compile_config_digest)
        return replace(keyed, extra_parameters={**keyed.extra_parameters, "part": HEADERS})
