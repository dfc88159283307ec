"""Charts as SVG, drawn by matplotlib where it is installed; equal figures give equal files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelexpress.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def charted(path: Path, inches: tuple[float, float], salt: str) -> Iterator["Figure"]:
    """Give a figure to draw in, and write it when the block ends.

    Args:
        path: Where to.
        inches: Width and height.
        salt: Makes the names within the file, so that they are the same each time.

    Raises:
        ConfigurationError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigurationError("a chart needs matplotlib: pip install 'modelexpress[charts]'") from error
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9}):
        # No pyplot: its choice of a backend belongs to the program that calls us.
        figure = Figure(figsize=inches, layout="constrained", facecolor="white")
        yield figure
        try:
            figure.savefig(path, format="svg", metadata={"Date": None})
        except OSError as error:
            raise ConfigurationError(f"the chart {path} cannot be written: {error.strerror}") from error
