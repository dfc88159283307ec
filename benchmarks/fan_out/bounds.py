"""What fan-out is compared with: formulas for full-duplex links of one speed, in seconds."""

import math

from benchmarks.fan_out.fleet import Setup


def star(setup: Setup, targets: int) -> float:
    """Return the time in which one seed sends the model to every target at once: they share its uplink."""
    return targets * setup.chunks * setup.chunk / setup.rate


def doubling(setup: Setup, targets: int) -> float:
    """Return the time when each complete replica serves one target at a time.

    Every round doubles the replicas, the seed among them, so that all have it after ceil(log2(targets + 1)) rounds.
    """
    return math.ceil(math.log2(targets + 1)) * setup.chunks * setup.chunk / setup.rate


def chain(setup: Setup, targets: int) -> float:
    """Return the time of an ideal chain: the last target is a chunk behind for each one before it."""
    return (setup.chunks + targets - 1) * setup.chunk / setup.rate


def optimum(
    setup: Setup, targets: int, *, seeds: int = 1, seed_rate: float | None = None, slowest: float | None = None
) -> float:
    """Return a time that nothing can beat.

    The seed needs a round for each of its M chunks. When it has sent the last one, two workers have that, and each
    round at most doubles them: M - 1 + ceil(log2(targets + 1)) rounds. With equal links and targets + 1 a power of two
    this is reached (Bar-Noy and Kipnis, "Broadcasting multiple messages in simultaneous send/receive systems", 1994).
    The whole model has to leave the seeds once, and to enter through the slowest link once.

    Args:
        setup: Sizes and the rate of a link.
        targets: How many.
        seeds: Complete sources at the start.
        seed_rate: Of the link of each, where it is another.
        slowest: Rate of the slowest link of a target, where they differ.
    """
    neck = min(slowest or setup.rate, seeds * (seed_rate or setup.rate), setup.rate)
    rounds = math.ceil(math.log2((targets + seeds) / seeds))
    return setup.chunks * setup.chunk / neck + (rounds - 1) * setup.chunk / setup.rate
