"""Source identities for property tests."""

from hypothesis import strategies as st

from modelexpress.identity import BackendFramework, SourceIdentity, SourceType

# Protobuf carries no lone surrogates.
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


def identities() -> st.SearchStrategy[SourceIdentity]:
    """Return identities with any text and number in any field."""
    sizes = st.integers(0, 2**32 - 1)
    return st.builds(
        SourceIdentity,
        mx_version=TEXT,
        mx_source_type=st.sampled_from(SourceType),
        model_name=TEXT,
        backend_framework=st.sampled_from(BackendFramework),
        tensor_parallel_size=sizes,
        pipeline_parallel_size=sizes,
        expert_parallel_size=sizes,
        dtype=TEXT,
        quantization=TEXT,
        extra_parameters=st.dictionaries(TEXT, TEXT, max_size=4),
        revision=TEXT,
        backend_framework_version=TEXT,
        torch_version=TEXT,
        cuda_version=TEXT,
        triton_version=TEXT,
        gpu_arch=TEXT,
        compile_config_digest=TEXT,
    )
