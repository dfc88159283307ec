"""What engines call: `bring` before they initialise, `share_when_ready` beside their start. Neither raises."""

from modelexpress.artifacts.bringing import BroughtCache, BroughtCaches, bring
from modelexpress.artifacts.sharing import Ready, Sharing, share_when_ready

__all__ = ["BroughtCache", "BroughtCaches", "Ready", "Sharing", "bring", "share_when_ready"]
