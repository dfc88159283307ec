"""Stores: where the registry keeps its records. Each passes the same conformance suite."""

from modelexpress.registry.store.base import (
    Liveness,
    Store,
    Update,
    Usage,
    WorkerState,
)
from modelexpress.registry.store.opening import open_store

__all__ = ["Liveness", "Store", "Update", "Usage", "WorkerState", "open_store"]
