"""What a timeline consists of, and what it comes to."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

from modelexpress.errors import DwdpError


class Kind(StrEnum):
    """What takes place in a span."""

    FETCH = "fetch"
    WAIT = "wait"
    COMPUTE = "compute"
    BETWEEN = "between"


@dataclass(frozen=True)
class Span:
    """Something that took place.

    Args:
        forward: Number of the forward, from the first that the group ran.
        position: Of the layer among those with experts.
        kind: What it was.
        start: Seconds from the beginning of what is shown.
        end: Seconds from there.
    """

    forward: int
    position: int
    kind: Kind
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True)
class LayerTimes:
    """One layer, on average over forwards; seconds.

    Args:
        position: Among those with experts.
        compute: Its experts.
        fetch: What it took to fetch them.
        wait: How long computing waited for that.
        between: From the experts before it to there: attention, and layers without experts.
    """

    position: int
    compute: float
    fetch: float
    wait: float
    between: float


@dataclass(frozen=True)
class Summary:
    """All layers.

    Args:
        layers: In order.
    """

    layers: tuple[LayerTimes, ...]

    @property
    def fetch(self) -> float:
        """Seconds of a forward in which something was fetched, added up."""
        return sum(layer.fetch for layer in self.layers)

    @property
    def wait(self) -> float:
        """Seconds of a forward in which computing waited for experts."""
        return sum(layer.wait for layer in self.layers)

    @property
    def overlap(self) -> float:
        """Part of the fetching that was hidden behind computing: 1 where nothing waited."""
        return max(0.0, 1 - self.wait / self.fetch) if self.fetch else 1.0

    def fields(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "fetch": self.fetch,
            "wait": self.wait,
            "overlap": self.overlap,
        }


def summarised(spans: Sequence[Span]) -> Summary:
    """Return what each layer that was computed took on average.

    Raises:
        DwdpError: None was.
    """
    positions = sorted({span.position for span in spans if span.kind is Kind.COMPUTE})
    if not positions:
        raise DwdpError("the timeline is empty: run a forward within the block that it observes")

    def mean(position: int, kind: Kind) -> float:
        found = [span.seconds for span in spans if span.position == position and span.kind is kind]
        return fmean(found) if found else 0.0

    return Summary(
        tuple(
            LayerTimes(position, *(mean(position, k) for k in (Kind.COMPUTE, Kind.FETCH, Kind.WAIT, Kind.BETWEEN)))
            for position in positions
        )
    )
