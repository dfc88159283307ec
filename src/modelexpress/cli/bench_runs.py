"""The measurements of `mx bench`: each yields figures, with the limit measured in the same run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from modelexpress.cli.child import child, private_registry
from modelexpress.cli.figure import Figure
from modelexpress.weights.report import COPY

Say = Callable[[str], None]

LIMITS = {
    "local": "one thread copies into fresh pages",
    "tcp": "plain sockets, as many streams",
}

ROUNDS = 3


@dataclass(frozen=True)
class Timings:
    """The fastest of some rounds: other work on a machine only ever slows a round down.

    Args:
        copy: Seconds in which the bytes travelled and were verified.
        whole: Seconds of a whole load.
        rest: Seconds of a load outside the copy.
        limit: Seconds at the limit; zero where it was not measured.
        nbytes: Bytes of one load.
    """

    copy: float
    whole: float
    rest: float
    limit: float
    nbytes: int


def measure_memory(nbytes: int, say: Say) -> Iterator[Figure]:
    """Yield the speed of memory: copies into fresh and into used pages, and digests."""
    from modelexpress.cli.speed import copy_seconds, digest_seconds, filled_arena, fresh_copy_seconds

    say("touching memory")
    source, target = filled_arena(nbytes), filled_arena(nbytes)
    say("copying and digesting memory")
    warm = nbytes / min(copy_seconds(target, source, nbytes) for _ in range(ROUNDS)) / 1e9
    target.close()
    fresh = nbytes / min(fresh_copy_seconds(source, nbytes) for _ in range(ROUNDS + 1)) / 1e9
    digest = nbytes / min(digest_seconds(source) for _ in range(ROUNDS)) / 1e9
    source.close()
    yield Figure("copy into used pages, one thread", warm, "GB/s")
    yield Figure("copy into fresh pages, one thread", fresh, "GB/s")
    yield Figure("digest, one thread", digest, "GB/s")


def measure_peers(nbytes: int, tensors: int, transports: Sequence[str], say: Say) -> Iterator[Figure]:
    """Yield the speed of loads from another process, over each transport."""
    with ExitStack() as stack:
        say("starting a registry and a source")
        registry = stack.enter_context(private_registry())
        arguments = (registry, "--bytes", nbytes, "--tensors", tensors)
        stack.enter_context(child("-m", "modelexpress.cli.bench_source", *arguments)).answer()
        for transport in transports:
            timings = time_loads(registry, nbytes, tensors, transport, say, limit=True)
            yield Figure(
                f"load over {transport}, copy and verify",
                timings.nbytes / timings.copy / 1e9,
                "GB/s",
                LIMITS[transport],
                timings.nbytes / timings.limit / 1e9,
            )
            yield Figure(f"load over {transport}, all but the copy", timings.rest, "s")


def time_loads(
    registry: str,
    nbytes: int,
    tensors: int,
    transport: str,
    say: Say,
    *,
    limit: bool,
    verify: bool = True,
    rounds: int = ROUNDS,
) -> Timings:
    """Load from a source that is already there, in a process of its own, once more than `rounds`.

    Args:
        registry: HOST:PORT that knows the source.
        nbytes: Of all tensors together.
        tensors: Their number.
        transport: "local" or "tcp".
        say: Told what happens.
        limit: Whether to measure the limit of that transport before each load.
        verify: False leaves the digests out.
        rounds: Loads that count; one more before them does not.
    """
    flags: list[object] = [] if verify else ["--unverified"]
    with ExitStack() as stack:
        if limit and transport == "tcp":
            flags += ["--sender", stack.enter_context(child("-m", "modelexpress.cli.plain_sockets", nbytes)).line()]
        target = child(
            *("-m", "modelexpress.cli.bench_target", registry, "--bytes", nbytes, "--tensors", tensors),
            *("--transport", transport, "--limit", transport if limit else "", *flags),
        )
        process = stack.enter_context(target)
        answers = []
        for number in range(rounds + 1):
            say(f"{transport}: load {number + 1} of {rounds + 1}")
            process.tell()
            answers.append(process.answer())
    return _timings(answers[1:])


def _timings(answers: Sequence[dict[str, Any]]) -> Timings:
    reports = [answer["report"] for answer in answers]
    copies = [sum(s["seconds"] for s in report["stages"] if s["name"] == COPY) for report in reports]
    return Timings(
        copy=min(copies),
        whole=min(report["seconds"] for report in reports),
        rest=min(report["seconds"] - copy for report, copy in zip(reports, copies, strict=True)),
        limit=min(answer["limit_seconds"] or 0.0 for answer in answers),
        nbytes=reports[0]["nbytes"],
    )
