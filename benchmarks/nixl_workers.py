"""More than one UCX worker in the transport `nixl`, which has one: only to measure whether more would be faster.

NIXL binds each thread that posts to one of its workers, in turn, and UCX gives each worker a stream of its own to each
GPU. So a reader needs as many threads. This is no more than measuring takes: a probe connects the worker of the thread
that opens a source, and a reader's other threads would have to connect theirs before they may read in earnest.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modelexpress.transport import Run, nixl_reader
from modelexpress.transport.crew import Crew
from modelexpress.transport.nixl_library import load
from modelexpress.transport.nixl_memory import DeviceLanding, Landing, Registrations, Span
from modelexpress.transport.nixl_native import Block


class _Shared(Landing):
    """A landing that the threads of one reader use in turn."""

    def __init__(self, landing: Landing) -> None:
        self._landing = landing
        self._using = threading.Lock()

    def fit(self, runs: Iterable[Run]) -> list[Run]:
        with self._using:
            return self._landing.fit(runs)

    def blocks(self, spans: Sequence[Span]) -> list[Block]:
        with self._using:
            return self._landing.blocks(spans)

    def release(self) -> None:
        self._landing.release()


def use_workers(count: int) -> None:
    """Let the agents and readers that this process makes from now on have so many workers."""
    agents = load().native.nixlAgent
    create = agents.createBackend

    def with_workers(agent: Any, backend: str, options: Mapping[str, str]) -> int:
        created: int = create(agent, backend, {**options, "num_workers": str(count)})
        return created

    def crew(name: str, sizes: Sequence[int], workers: Sequence[Callable[[], None]], part_bytes: int) -> Crew:
        return Crew(name, sizes, [*workers] * count, part_bytes)

    def landing(registrations: Registrations) -> Landing:
        return _Shared(Landing(registrations))

    def device_landing(registrations: Registrations, device: int) -> Landing:
        return _Shared(DeviceLanding(registrations, device))

    agents.createBackend = with_workers
    for name, made in (("Crew", crew), ("Landing", landing), ("DeviceLanding", device_landing)):
        setattr(nixl_reader, name, made)
