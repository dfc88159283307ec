"""The plugin that vLLM finds by its entry point, in each of its processes."""


def register() -> None:
    """Make `--load-format mx` mean the same as `--load-format modelexpress`."""
    from vllm.model_executor.model_loader import register_model_loader

    from modelexpress.engines.vllm.loader import MxModelLoader

    register_model_loader("mx")(MxModelLoader)
