"""How long a layer takes to compute, foreseen from its arithmetic and from what travels through the device's memory.

With T tokens, of which each goes to k of E experts, C FLOP a second and M bytes a second of device memory:

    experts      max((k · T + 64 · E) · F / C,  W / M)    F FLOP of an expert for a row, W bytes of all experts
    all others   max(T · D / C,  V / M)                   D FLOP for a token, V bytes of their weights
    in between   T · A / M                                A bytes that norms, residuals, copies and gates move

Kernels read the next weights while they compute, so of arithmetic and reading the longer one counts. They compute the
rows of an expert in tiles of 128 (CUTLASS's grouped products, Triton's of the engines): the last tile of each is half
empty on average. What lies between the products has next to no arithmetic. The gate, and the sorting of tokens by
experts, are left out.
"""

from dataclasses import dataclass

from modelexpress.dwdp.shapes import LayerShape, Work

TILE = 128
"""Rows of one expert that a grouped product computes together."""


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer: its experts, and attention.

    Args:
        work: Its arithmetic.
        layer: Its experts.
        flops: FLOP a second.
        memory_bandwidth: Bytes a second of the device's memory, read and written together.
        prompt: Tokens of each prompt; 0: the scores of attention are left out.
    """

    work: Work
    layer: LayerShape
    flops: float
    memory_bandwidth: float
    prompt: int = 0

    def seconds(self, tokens: int) -> float:
        """Return the time for so many tokens; with more of them it never gets shorter."""
        work = self.work
        others = work.per_token(self.prompt) - work.routed * work.row
        return (
            self._experts(tokens)
            + max(tokens * others / self.flops, (tokens > 0) * work.other_weights / self.memory_bandwidth)
            + tokens * work.carried / self.memory_bandwidth
        )

    def _experts(self, tokens: int) -> float:
        work, count = self.work, self.layer.num_experts
        # Few tokens reach few experts: each misses one with 1 - k/E, if all are as likely.
        reached = 1 - (1 - min(1.0, work.routed / count)) ** tokens
        rows = work.routed * tokens + reached * count * TILE / 2
        return max(rows * work.row / self.flops, reached * self.layer.nbytes / self.memory_bandwidth)
