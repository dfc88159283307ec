"""Names and identities of TensorRT-LLM's weights."""

from pathlib import Path

from modelexpress.engines.trtllm.place import place_of
from modelexpress.identity import BackendFramework, SourceIdentity, package_version
from modelexpress.settings import Settings

_HUB_FOLDER = "models--"
"""How the folder of a model of a hub begins, in the hub's cache."""


def model_name_of(given: str) -> str:
    """Return the name of a model that may be given as a folder: hosts keep the same one at different paths.

    Example:
        >>> model_name_of("/cache/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f249a1")
        'meta-llama/Llama-3.1-8B'
        >>> model_name_of("/models/my-llama/")
        'my-llama'
    """
    if given.count("/") <= 1 and not given.startswith(("/", ".", "~")):
        return given or "unknown"
    path = Path(given)
    for folder in path.parents if "snapshots" in path.parts else ():
        if folder.name.startswith(_HUB_FOLDER):
            return folder.name.removeprefix(_HUB_FOLDER).replace("--", "/")
    return path.name or "unknown"


def live_identity(
    model_name: str,
    tp_size: int | None = None,
    pp_size: int | None = None,
    ep_size: int | None = None,
    dtype: str = "",
    quantization: str = "",
) -> SourceIdentity:
    """Return the identity under which live weights are offered and asked for.

    Engines ask with the name alone, before they load: sizes that are not given are those of the process group. What
    dtype each tensor has is not part of it: manifests say so, and are compared before anything is copied.

    Args:
        model_name: As the engine names the model.
        tp_size: Ranks that each layer is cut over.
        pp_size: Stages.
        ep_size: Ranks that experts are dealt to.
        dtype: Of the model, where the caller wants it to count.
        quantization: Likewise.
    """
    place = place_of()
    return SourceIdentity(
        mx_version=package_version(),
        model_name=model_name,
        backend_framework=BackendFramework.TRT_LLM,
        tensor_parallel_size=place.tensor_parallel_size if tp_size is None else tp_size,
        pipeline_parallel_size=place.pipeline_parallel_size if pp_size is None else pp_size,
        expert_parallel_size=place.expert_parallel_size if ep_size is None else ep_size,
        dtype=dtype,
        quantization=quantization,
        revision=Settings.read().model_revision,
    )
