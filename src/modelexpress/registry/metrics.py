"""What a registry counts, in the format that Prometheus scrapes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from modelexpress.errors import ConfigurationError
from modelexpress.registry.store import Usage, WorkerState

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


@dataclass
class Outcome:
    """The status of a call while it runs; the code of a call that ends without another is OK."""

    code: str = "OK"


class Metrics:
    """Calls by method and status, their duration, and what the store holds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(
            "mx_registry_calls", "Calls by method and status", ["method", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            "mx_registry_call_seconds",
            "Duration of calls",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._workers = Gauge(
            "mx_registry_workers", "Records by state at the last scan", ["state"], registry=self.registry
        )
        self._nbytes = Gauge("mx_registry_bytes", "Bytes of publications at the last scan", registry=self.registry)

    @contextmanager
    def call(self, method: str) -> Iterator[Outcome]:
        """Count one call; an exception that is not a gRPC abort is left to gRPC, and counts as UNKNOWN."""
        outcome = Outcome()
        started = time.perf_counter()
        try:
            yield outcome
        except BaseException:  # counted, whatever it is, and raised again
            if outcome.code == "OK":
                outcome.code = "UNKNOWN"
            raise
        finally:
            self._calls.labels(method, outcome.code).inc()
            self._seconds.labels(method).observe(time.perf_counter() - started)

    def show(self, usage: Usage) -> None:
        """Show what the store holds."""
        for state in WorkerState:
            self._workers.labels(state.name).set(usage.records.get(state, 0))
        self._nbytes.set(usage.nbytes)

    def serve(self, port: int, host: str) -> tuple[int, Callable[[], None]]:
        """Answer scrapes over HTTP from a thread; return the bound port and what stops it.

        Raises:
            ConfigurationError: The port cannot be bound.
        """
        try:
            server, thread = start_http_server(port, host, registry=self.registry)
        except OSError as error:
            raise ConfigurationError(f"metrics cannot be served on {host}:{port}: {error}") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop
