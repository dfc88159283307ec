"""The registry: who holds which material, and is it alive. Metadata only, never weight bytes."""
