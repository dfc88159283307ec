"""What torch.compile leaves behind: graphs, generated code, shared objects, and the Triton kernels within."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from modelexpress.artifacts.kind import Kind, is_litter
from modelexpress.artifacts.kinds.inductor_folders import HEADERS, default_folder
from modelexpress.artifacts.kinds.triton_groups import is_group, relocated_group
from modelexpress.errors import IdentityError
from modelexpress.identity import SourceIdentity, SourceType

_GRAPHS = frozenset({"fxgraph", "aotautograph"})
_VLLM_INDICES = frozenset({"vllm_compile_cache.py", "model"})
"""What vLLM opens first: its table of compiled graphs, and a model that was compiled ahead of time."""


class TorchCompile(Kind):
    """The folder of torch.compile, or the one that vLLM keeps for it.

    Source of the variables: `torch._inductor.runtime.cache_dir_utils` of torch 2.13, whose default is a folder of
    the user's among temporary files; vLLM documents VLLM_CACHE_ROOT. Where both are set, the folder that torch was
    told to use is taken: an engine that uses its own whatever torch was told leaves that variable out.
    """

    name = "torch_compile"
    source_type = SourceType.TORCH_COMPILE_CACHE

    def root(self, environ: Mapping[str, str]) -> Path:
        if folder := environ.get("TORCHINDUCTOR_CACHE_DIR"):
            return Path(folder)
        if folder := environ.get("VLLM_CACHE_ROOT"):
            return Path(folder, "torch_compile_cache")
        return default_folder(environ)

    def belongs(self, path: PurePosixPath) -> bool:
        return path.parts[0] != HEADERS and not is_litter(path)

    def comes_last(self, path: PurePosixPath) -> bool:
        # A cached graph names the generated code and the shared objects that it calls.
        return is_group(path) or path.name in _VLLM_INDICES or not _GRAPHS.isdisjoint(path.parts)

    def localised(self, path: PurePosixPath, content: memoryview, root: Path) -> bytes | None:
        return relocated_group(path, content, root)

    def identity(self, base: SourceIdentity, *, compile_config_digest: str = "") -> SourceIdentity:
        if not base.model_name or not base.torch_version:
            raise IdentityError(
                "the cache of torch.compile needs an identity with model_name and torch_version: code that was "
                "compiled for another model or torch is of no use; name both"
            )
        digest = compile_config_digest or base.compile_config_digest
        return replace(base, mx_source_type=self.source_type, compile_config_digest=digest)
