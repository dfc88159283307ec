"""SGLang: `--load-format remote_instance` with the backend `modelexpress`."""
