"""Text that strangers chose, on a terminal."""


def printable(text: str) -> str:
    """Return text that cannot steer the terminal: names, addresses and messages of others may hold escape sequences."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
