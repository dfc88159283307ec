"""Links: how fast bytes flow when several readers share one uplink."""

from collections.abc import Callable
from operator import attrgetter

import simpy

_EPSILON = 1e-6  # bytes: what rounding may leave of a chunk


class Uplink:
    """The sending half of a full-duplex link.

    Its flows get max-min fair shares. A target reads from one worker at a time, so a flow has its reader's downlink to
    itself, and the shares of one uplink depend on nothing but its own flows: each gets an equal part, and what a slow
    reader cannot take is divided among the others.

    Args:
        env: Where time comes from.
        rate: Bytes per second.
    """

    def __init__(self, env: simpy.Environment, rate: float) -> None:
        self.env = env
        self.rate = rate
        self.sent = 0.0
        self._flows: list[Flow] = []

    def start(self, flow: "Flow") -> None:
        """Let a flow have a share."""
        self._flows.append(flow)
        self._share()

    def stop(self, flow: "Flow") -> None:
        """Divide the share of a flow among the others."""
        if flow in self._flows:
            self._flows.remove(flow)
            flow.settle()
            flow.rate = 0.0
            self._share()

    def _share(self) -> None:
        left, count = self.rate, len(self._flows)
        for flow in sorted(self._flows, key=attrgetter("most")):
            share = min(flow.most, left / count)
            left, count = left - share, count - 1
            flow.run_at(share)


class Flow:
    """Chunks on their way from one worker to one reader, one after the other.

    Args:
        uplink: Of the worker that is read.
        most: Rate of the reader's downlink, bytes per second.
        arrived: Called when the bytes of a `send` are through; it may send more at once.
    """

    def __init__(self, uplink: Uplink, most: float, arrived: Callable[[], None]) -> None:
        self.most = most
        self.rate = 0.0
        self.remaining = 0.0
        self._uplink = uplink
        self._arrived = arrived
        self._settled = 0.0
        self._plan = 0

    def send(self, nbytes: float) -> None:
        """Put bytes on their way; what was sent before has arrived."""
        self.remaining = nbytes
        self._settled = self._uplink.env.now
        if self.rate:
            self._schedule()
        else:
            self._uplink.start(self)

    def stop(self) -> None:
        """Send no more; `remaining` says how much has not arrived."""
        self._plan += 1
        self._uplink.stop(self)

    def settle(self) -> None:
        """Account for what went through at the present rate."""
        now = self._uplink.env.now
        gone = self.rate * (now - self._settled)
        self.remaining -= gone
        self._uplink.sent += gone
        self._settled = now

    def run_at(self, rate: float) -> None:
        """Go on at another rate."""
        if rate != self.rate:
            self.settle()
            self.rate = rate
            self._schedule()

    def _schedule(self) -> None:
        self._plan += 1
        due = self._uplink.env.timeout(max(self.remaining, 0.0) / self.rate, self._plan)
        due.callbacks.append(self._due)

    def _due(self, event: simpy.Event) -> None:
        if event.value != self._plan:
            return  # the rate has changed since, or the flow was stopped
        self.settle()
        assert self.remaining < _EPSILON * max(self.rate, 1.0), "time went by and the bytes did not"
        self.remaining = 0.0
        self._arrived()
        if not self.remaining:
            self._uplink.stop(self)
