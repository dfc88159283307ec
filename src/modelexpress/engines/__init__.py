"""Engines: thin adapters by which vLLM, SGLang and others load from a peer and become sources.

Each engine's folder has the names that the engine imports. What they have in common is in the modules here.
"""
