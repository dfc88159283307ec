"""What tests of loading have in common."""

import uuid

import modelexpress as mx
from modelexpress.weights.catalog import Model

TCP = mx.Settings(transport="tcp", worker_grpc_port=0)
LOCAL = mx.Settings(transport="local", worker_grpc_port=0)
# Chunks are small, so that even small models take many batches.
SMALL = mx.Settings(worker_grpc_port=0, chunk_bytes=64 << 10)


def load_into(target: Model, identity: mx.SourceIdentity, registry: str, settings: mx.Settings) -> mx.LoadReport:
    """Load from peers alone."""
    return mx.load(target, identity, registry=registry, settings=settings)


def new_identity() -> mx.SourceIdentity:
    """Return an identity that no other test uses."""
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")
