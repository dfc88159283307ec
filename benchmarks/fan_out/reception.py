"""Receiving: one reader takes a worker's chunks in order, as far as that worker has verified them."""

import simpy

from benchmarks.fan_out.fleet import Worker
from benchmarks.fan_out.links import Flow

_EPSILON = 1e-9  # seconds: what rounding may leave of a wait


class Reception:
    """A reader and the worker that it reads from; `over` tells whether the reader became complete.

    Args:
        reader: It keeps what it has, and goes on behind it.
        source: Complete or itself receiving.
    """

    def __init__(self, reader: Worker, source: Worker) -> None:
        self.over = reader.fleet.env.event()
        self._env = reader.fleet.env
        self._setup = reader.fleet.setup
        self._reader = reader
        self._source = source
        self._open = True
        self._flow = Flow(source.uplink, reader.rate, self._arrived)
        self._verified_until = self._env.now
        source.readers.append(self)
        self._next()

    def close(self) -> float:
        """Read no more; return the bytes of a chunk that was under way and must be fetched again."""
        if not self._open:
            return 0.0
        self._open = False
        self._flow.stop()
        self._source.readers.remove(self)
        if self in self._source.hungry:
            self._source.hungry.remove(self)
        return self._setup.chunk - self._flow.remaining if self._flow.remaining else 0.0

    def lose(self, after: float) -> None:
        """Stop now, because the source is gone; the reader notices some seconds later."""
        self._reader.wasted += self.close()
        noticed = self._env.timeout(after)
        noticed.callbacks.append(lambda _: self._end(False))

    def _end(self, complete: bool) -> None:
        if not self.over.triggered:
            self.over.succeed(complete)

    def _next(self, _: simpy.Event | None = None) -> None:
        """Fetch the next chunk as soon as it is known to be there."""
        wanted = self._reader.arrived
        if not self._open or wanted == self._setup.chunks:
            return
        if wanted >= self._source.prefix:
            self._source.hungry.append(self)
        elif (early := self._source.times[wanted] + self._setup.notice - self._env.now) > _EPSILON:
            self._env.timeout(early).callbacks.append(self._next)
        else:
            self._flow.send(self._setup.chunk)

    def _arrived(self) -> None:
        self._reader.arrived += 1
        self._verified_until = max(self._verified_until, self._env.now) + self._setup.chunk / self._setup.digest_rate
        self._env.timeout(self._verified_until - self._env.now).callbacks.append(self._verify)
        self._next()

    def _verify(self, _: simpy.Event) -> None:
        reader = self._reader
        if not reader.alive:
            return
        reader.times.append(self._env.now)
        hungry, reader.hungry = reader.hungry, []
        for reception in hungry:
            self._env.timeout(self._setup.notice).callbacks.append(reception._next)
        if reader.complete:
            self._end(True)
