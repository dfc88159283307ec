"""Names that nothing in src/ uses, and who does: vulture counts what stands here as used."""

from typing import Any

_: Any = object()

_called_by_the_interpreter = (_.__getattr__, _.__dir__, _.trace, _.__array_interface__)
_read_by_torch = (_.__cuda_array_interface__,)
_called_by_typer = (_._configure, _.LOCAL, _.TCP)
_called_by_grpc = (
    *(_.GetTensorManifest, _.PrepareTensorRead, _.ReleaseTensorRead, _.intercept_service),
    *(_.GetArtifactManifestHeader, _.GetArtifactManifestChunks, _.PrepareArtifactChunk, _.ReleaseArtifactChunk),
)
_read_by_pydantic = (_.model_config,)
_read_by_transformers = (_.generation_config,)
_read_by_tokenizers = (_.pre_tokenizer, _.decoder)
_read_by_nixl = (_.useProgThread, _.pthrDelay, _.syncMode)
_part_of_the_public_api = (_.publications, _.wait_offered, _.waste, _.load_from_peer, _.draw)
_called_by_engines = (
    *(_.end_expert_id, _.add_layer, _.wait_and_bind, _.publish_model, _.checkpoint_format, _.is_weights_preloaded),
    *(_.get_default_weight_loader, _.get_initialized_weight_mapper),
)
_used_by_tests_alone = (_.kind_named,)
_read_by_the_driver = (_.gpuDirectRDMACapable,)
_named_in_annotations = (_.Buffer, _.Handler, _.PretrainedConfig, _.sendobj)
_numbers_of_the_protocol = (
    *(_.LORA, _.CUDA_GRAPH, _.TORCH_COMPILE_CACHE, _.TRITON_CACHE, _.DEEP_GEMM_CACHE, _.TILELANG_CACHE),
    *(_.CUTE_DSL_CACHE, _.FLASHINFER_CACHE, _.TVM_FFI_CACHE, _.VLLM, _.SGLANG, _.TRT_LLM),
)
_named_by_their_values = (_.WARN,)
_accepted_without_effect = (
    _.artifact_bundle_root,
    _.metadata_port,
    _.pool_registration,
    _.vmm_arena,
    _.source_selector,
    _.kubernetes_service_pattern,
    _.kubernetes_source_retries,
    _.kubernetes_source_backoff,
    _.model_uri,
)
