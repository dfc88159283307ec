"""Ways to fill a target, in the order in which they are tried: peer, storage, the caller's own loader."""

from modelexpress.weights.strategies.base import Strategy
from modelexpress.weights.strategies.native import NativeStrategy
from modelexpress.weights.strategies.peer import PeerStrategy
from modelexpress.weights.strategies.storage import StorageStrategy

__all__ = ["NativeStrategy", "PeerStrategy", "StorageStrategy", "Strategy"]
