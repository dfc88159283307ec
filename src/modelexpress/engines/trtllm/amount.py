"""How log lines tell what was moved."""


def amount(tensors: int, nbytes: int, seconds: float) -> str:
    """Return counts, GB and GB/s in words.

    Args:
        tensors: How many.
        nbytes: Of all of them.
        seconds: That it took.
    """
    rate = nbytes / seconds / 1e9 if seconds else 0.0
    return f"{tensors} tensors, {nbytes / 1e9:.3f} GB in {seconds:.2f} s ({rate:.2f} GB/s)"
