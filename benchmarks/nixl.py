"""How fast the transport `nixl` is, against what NIXL itself reaches with one large block in the same rounds.

Run `python -m benchmarks.nixl`; it takes half a minute, needs 5 GiB of memory, and writes
benchmarks/results/nixl.json. GB are 10^9 bytes. Source and target are two processes of this host and their memory
is host memory, so UCX copies with process_vm_readv (CMA): the figures compare ours with NIXL's, they say nothing of
a network. All memory is touched first; the first round is dropped, and of the others the fastest counts.
"""

import argparse
import ctypes
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from modelexpress.cli.figure import Figure, figure_table
from modelexpress.cli.machine import Machine
from modelexpress.cli.sizes import parse_bytes
from modelexpress.memory import HostArena
from modelexpress.transport import NixlTransport, Reader, Run
from modelexpress.transport.door import Door
from modelexpress.transport.greeting import Greeting
from modelexpress.transport.nixl_agent import UCX_SETTINGS, Agent
from modelexpress.transport.nixl_descriptor import Handover, NixlDescriptor, receive_handover
from modelexpress.transport.nixl_library import load
from modelexpress.transport.nixl_memory import Span
from modelexpress.transport.nixl_native import Block, NativeAgent

RESULTS = Path(__file__).parent / "results" / "nixl.json"
TOKEN = "benchmark"
FEW, MANY = 300, 20_000
IDLE_SECONDS = 2.0
AIM = 0.95
UNMERGED = f"{MANY:,} tensors, no two of which can be merged"


@dataclass(frozen=True)
class Scope:
    """How much is measured."""

    nbytes: int = 2 << 30
    rounds: int = 8


def serve(nbytes: int, parent: Connection) -> None:
    """Be the source: one arena, until this process is killed."""
    with HostArena(nbytes) as arena, NixlTransport(without_cards=True) as transport:
        ctypes.memset(arena.region.address, 7, nbytes)
        export = transport.export([arena.region])
        export.grant(TOKEN)
        parent.send(export.descriptor)
        parent.recv()


def ask_for_handover(descriptor: bytes, undo: ExitStack) -> Handover:
    """Greet the source as a reader does, and return what it tells; the lease lasts until `undo`."""
    source = NixlDescriptor.parse(descriptor)
    greeting = Greeting(bytes.fromhex(source.export), TOKEN.encode())
    sock = Door("127.0.0.1", 0, 5.0, None, None).call(source.host, source.port, False, greeting, undo)
    return receive_handover(sock, time.monotonic() + 5)


def read_natively(agent: Agent, peer: str, local: Block, remote: Block) -> None:
    """Let NIXL read one block, all in one transfer."""
    handle = agent.native.post(peer, [local], [remote])
    while not agent.native.landed(handle):
        time.sleep(0)
    agent.native.release(handle)


def read(reader: Reader, runs: Sequence[Run]) -> None:
    """Read as a load does."""
    reader.read(runs).wait()


def seconds(action: Callable[[], object]) -> float:
    """Return how long an action takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def tensors(target: HostArena, count: int) -> list[Run]:
    """Return the runs of `count` tensors that fill an arena, in the order of its memory."""
    step = target.region.nbytes // count
    return [Run(0, n * step, target.region.address + n * step, step) for n in range(count)]


def speed(scope: Scope, descriptor: bytes, say: Callable[[str], None]) -> list[Figure]:
    """Return the figures of reading."""
    agent = Agent()
    target = HostArena(scope.nbytes)
    ctypes.memset(target.region.address, 1, scope.nbytes)
    local = agent.memory.hold(Span(target.region.address, scope.nbytes))
    rounds = []
    with ExitStack() as undo:
        handover = ask_for_handover(descriptor, undo)
        agent.peers.connect(handover.agent, handover.metadata)
        remote = (handover.places[0][0], scope.nbytes, handover.places[0][1])
        transport = undo.enter_context(NixlTransport(without_cards=True, agent=lambda: agent))
        reader = undo.enter_context(transport.open(descriptor, TOKEN))
        actions = {
            "one block, by NIXL": partial(read_natively, agent, handover.agent, local, remote),
            "one block": partial(read, reader, [Run(0, 0, target.region.address, scope.nbytes)]),
            f"{FEW} tensors": partial(read, reader, tensors(target, FEW)),
            f"{MANY:,} tensors": partial(read, reader, tensors(target, MANY)),
            UNMERGED: partial(read, reader, tensors(target, MANY)[::-1]),
        }
        for number in range(scope.rounds + 1):
            say(f"round {number + 1} of {scope.rounds + 1}")
            rounds.append({name: seconds(action) for name, action in actions.items()})
    assert target.region.view()[-1] == 7
    agent.native.end()
    best = {name: scope.nbytes / min(took[name] for took in rounds[1:]) / 1e9 for name in rounds[0]}
    most, scattered = best.pop("one block, by NIXL"), best.pop(UNMERGED)
    figures = [
        Figure(name, rate, "GB/s", "one block, by NIXL", most, f"≥ {AIM} of it", rate >= AIM * most)
        for name, rate in best.items()
    ]
    return [*figures, Figure(UNMERGED, scattered, "GB/s", "one block, by NIXL", most)]


def offering(arena: HostArena, count: int) -> Figure:
    """Return how long it takes to offer `count` tensors of an arena, as a whole and one by one."""
    step = arena.region.nbytes // count
    blocks = [(arena.region.address + n * step, step, 0) for n in range(count)]
    native = NativeAgent(load(), "one-by-one", "UCX", UCX_SETTINGS)
    started = time.perf_counter()
    for block in blocks:
        native.register(block)
    each = time.perf_counter() - started
    megabytes = len(native.metadata(blocks)) / 1e6
    native.end()
    agent = Agent()
    with NixlTransport(without_cards=True, agent=lambda: agent) as transport:
        whole = seconds(lambda: transport.export([arena.region]))
    agent.native.end()
    name, note = f"offering {count:,} tensors", f"one by one they have {megabytes:.3g} MB of metadata"
    return Figure(name, whole * 1000, "ms", "each registered by itself", each * 1000, note=note)


def costs(descriptor: bytes) -> list[Figure]:
    """Return what an agent and its first connection cost, and what an idle one takes."""
    made: list[Agent] = []
    start = seconds(lambda: made.append(Agent()))
    with NixlTransport(without_cards=True, agent=lambda: made[0]) as transport:
        first, again = (seconds(lambda: transport.open(descriptor, TOKEN).close()) for _ in range(2))
        busy = time.process_time()
        time.sleep(IDLE_SECONDS)
        idle = (time.process_time() - busy) / IDLE_SECONDS
    made[0].native.end()
    return [
        Figure("starting an agent", start * 1000, "ms"),
        Figure("opening a source for the first time", first * 1000, "ms"),
        Figure("opening it again", again * 1000, "ms"),
        Figure("an idle agent", idle * 100, "% of a core"),
    ]


def main() -> None:
    """Measure what the arguments ask for, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=parse_bytes, default=Scope.nbytes)
    parser.add_argument("--rounds", type=int, default=Scope.rounds)
    given = parser.parse_args()
    scope = Scope(nbytes=given.bytes, rounds=given.rounds)
    machine = Machine.this()
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=serve, args=(scope.nbytes, child), daemon=True)
    process.start()
    descriptor = parent.recv()
    found = [*costs(descriptor), *speed(scope, descriptor, Console(stderr=True).print)]
    arena = HostArena(scope.nbytes)
    ctypes.memset(arena.region.address, 1, scope.nbytes)
    found += [offering(arena, count) for count in (FEW, MANY)]
    parent.send("enough")
    process.join()
    Console().print(figure_table(f"nixl, {scope.nbytes / 1e9:.2f} GB, {machine}", found))
    report = {
        "machine": asdict(machine),
        "scope": asdict(scope),
        "figures": [figure.fields() for figure in found],
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
