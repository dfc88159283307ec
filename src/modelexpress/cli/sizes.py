"""Numbers of bytes as people write them."""

import re

from modelexpress.errors import ConfigurationError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def shown_bytes(nbytes: int) -> str:
    """Return a number of bytes in the largest unit in which it does not look like nothing."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if nbytes >= size / 100:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"


def parse_bytes(text: str) -> int:
    """Return the bytes that a text like `4GiB`, `1.5 GB` or `1000` stands for.

    Raises:
        ConfigurationError: It is no such text, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factor = _UNITS.get(match[2].upper()) if match else None
    if match is None or factor is None or float(match[1]) * factor < 1:
        raise ConfigurationError(f"{text!r} is no number of bytes: write it like 512MiB, 4GiB or 1000000")
    return int(float(match[1]) * factor)
