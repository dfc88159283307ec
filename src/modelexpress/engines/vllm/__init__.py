"""vLLM: `--load-format modelexpress`, or `mx`."""
