"""The load generator of benchmarks/registry.py: a process of its own, which prints what it saw as JSON.

The open loop sends on a fixed schedule and measures from the scheduled time, so that a stalled registry cannot
hide behind a generator that waits for it. The closed loop finds the most a registry can take.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from modelexpress.client import AsyncClient, calls
from modelexpress.client.channel import OPTIONS
from modelexpress.identity import SourceIdentity
from modelexpress.wire.records import SourceQuery, SourceStatus, TensorDescriptor, WorkerRecord

RANKS = 8
CONNECTIONS = 32
LISTINGS_PER_SECOND = 50


@dataclasses.dataclass(frozen=True)
class Latencies:
    """What one kind of call took: rate in calls a second, times in milliseconds."""

    calls: int
    rate: float
    p50_ms: float
    p99_ms: float
    worst_ms: float


def latencies(seconds: list[float], elapsed: float) -> Latencies:
    """Return the percentiles of some calls."""
    ordered = sorted(seconds)

    def at(fraction: float) -> float:
        return round(1000 * ordered[min(int(fraction * len(ordered)), len(ordered) - 1)], 2)

    return Latencies(len(ordered), round(len(ordered) / elapsed, 1), at(0.5), at(0.99), at(1.0))


def identity(worker: int) -> SourceIdentity:
    """Return the identity that a worker publishes: eight ranks share one."""
    return SourceIdentity(
        model_name=f"benchmark/model-{worker // RANKS}", mx_version="1.0.0", tensor_parallel_size=RANKS
    )


async def register(address: str, workers: int) -> None:
    """Publish every worker, with a hundred tensors each."""
    tensors = tuple(TensorDescriptor(f"layers.{n}.weight", n << 20, 1 << 20, 0, "bf16") for n in range(100))

    def record(worker: int) -> WorkerRecord:
        return WorkerRecord(
            worker_id=f"worker-{worker}",
            worker_rank=worker % RANKS,
            status=SourceStatus.READY,
            worker_grpc_endpoint=f"10.0.0.1:{worker}",
            tensors=tensors,
        )

    async with AsyncClient(address, timeout=30) as client:
        for start in range(0, workers, 100):
            some = range(start, min(start + 100, workers))
            await asyncio.gather(*(client.publish(identity(n), record(n)) for n in some))


class Generator:
    """Sends heartbeats and listings over several connections, and keeps what each took."""

    def __init__(self, address: str, workers: int) -> None:
        self._channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(CONNECTIONS)]
        self._heartbeats = [
            calls.update_status(identity(n).source_id, f"worker-{n}", n % RANKS, SourceStatus.READY, None)
            for n in range(workers)
        ]
        self._listings = [
            calls.list_sources(SourceQuery(status=SourceStatus.READY), identity(n)) for n in range(0, workers, RANKS)
        ]
        self._beaten: list[float] = []
        self._listed: list[float] = []

    async def run(self, seconds: float, rate: int, callers: int) -> dict[str, Any]:
        """Send heartbeats, `rate` a second or from `callers` that wait, and listings; return what they took."""
        end = time.perf_counter() + seconds
        heartbeats = [self._until(end) for _ in range(callers)]
        if rate:
            heartbeats.append(self._on_schedule(rate, seconds, self._beat))
        await asyncio.gather(*heartbeats, self._on_schedule(LISTINGS_PER_SECOND, seconds, self._list))
        return {
            "heartbeats": dataclasses.asdict(latencies(self._beaten, seconds)),
            "listings": dataclasses.asdict(latencies(self._listed, seconds)),
        }

    async def _until(self, end: float) -> None:
        while (now := time.perf_counter()) < end:
            await self._beat(now)

    async def _on_schedule(self, rate: int, seconds: float, send: Callable[[float], Awaitable[None]]) -> None:
        started = time.perf_counter()
        async with asyncio.TaskGroup() as running:
            for number in range(int(rate * seconds)):
                due = started + number / rate
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                running.create_task(_awaited(send(due)))

    async def _beat(self, due: float) -> None:
        call = random.choice(self._heartbeats)
        answer = await self._send(call)
        assert call.read(answer), "a heartbeat found no record"
        self._beaten.append(time.perf_counter() - due)

    async def _list(self, due: float) -> None:
        call = random.choice(self._listings)
        answer = await self._send(call)
        assert len(call.read(answer)) == RANKS, "a listing misses ranks"
        self._listed.append(time.perf_counter() - due)

    async def _send(self, call: calls.Call[Any]) -> bytes:
        send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = random.choice(self._channels).unary_unary(call.path)
        return await send(call.request, timeout=30)


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def main() -> None:
    """Read the arguments, register or send load, print the result as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--register", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--callers", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.register:
        await register(arguments.address, arguments.workers)
        print(json.dumps({}))
        return
    generator = Generator(arguments.address, arguments.workers)
    print(json.dumps(await generator.run(arguments.seconds, arguments.rate, arguments.callers)))


if __name__ == "__main__":
    asyncio.run(main())
