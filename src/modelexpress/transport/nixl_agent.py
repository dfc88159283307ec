"""The NIXL agent of this process: made when it is first needed, and kept until the process ends."""

import atexit
import itertools
import mmap
import os
import threading
import time
import uuid
from collections.abc import Mapping

from modelexpress.errors import TransferTimeout, TransportUnavailable
from modelexpress.memory import HostArena
from modelexpress.transport.nixl_cards import rdma_cards
from modelexpress.transport.nixl_device import allocate, made_current
from modelexpress.transport.nixl_library import load
from modelexpress.transport.nixl_memory import Registrations, Span
from modelexpress.transport.nixl_native import Block, NativeAgent, Segment
from modelexpress.transport.nixl_peers import IDLE_PEERS, Peers

UCX_SETTINGS: Mapping[str, str] = {
    "PROTO_EMULATION_ENABLE": "n",  # never over plain TCP; nixl_native.py says why
    "RCACHE_ENABLE": "n",  # deregistered memory cannot be read any more: no cache keeps it registered
}
DEVICE_PROBE_BYTES = 64 << 10
"""What is read to find out whether device memory is reached: enough for UCX to go the way that large reads go."""
POLL_SECONDS = 100e-6
"""How long to sleep before a transfer is looked at again: NIXL has nothing that wakes one up."""
_lock = threading.Lock()


class Agent:
    """An agent with what it has registered and whom it is connected to.

    Args:
        settings: UCX settings without their prefix.

    Raises:
        TransportUnavailable: NIXL or its backend does not work here.
    """

    _serial = itertools.count()

    def __init__(self, settings: Mapping[str, str] = UCX_SETTINGS) -> None:
        for key, value in settings.items():
            if os.environ.get(f"UCX_{key}", value) != value:
                raise TransportUnavailable(f"UCX_{key} is set in the environment and must not be: unset it")
        name = f"mx-{uuid.uuid4().hex}-{next(self._serial)}"
        self.native = NativeAgent(load(), name, _backend(), settings)
        self.memory = Registrations(self.native)
        # Registrations in device memory are told apart by numbers, but not over libfabric: see `Registrations`.
        self.peers = Peers(self.native, idle=0 if self.native.backend == "LIBFABRIC" else IDLE_PEERS)
        # Never unmapped: a probe of a peer that sleeps may land as long as the agent is there.
        self._arena = HostArena(mmap.PAGESIZE, "nixl-probe")
        self._scratch: dict[int | None, Block] = {None: self.memory.hold(Span.of(self._arena.region))}
        self._making_scratch = threading.Lock()

    @property
    def name(self) -> str:
        """The agent's name, which no other agent has."""
        return self.native.name

    def probe(
        self, peer: str, block: Block, timeout: float, *, out_of: Segment = Segment.HOST, device: int | None = None
    ) -> None:
        """Read a little of a peer: it connects the two agents, and shows that they can reach each other.

        Connecting needs the peer's help. Reads that were posted before would land whenever it helps.

        Args:
            peer: Name of the peer.
            block: Some of its memory.
            timeout: Seconds that the peer may take.
            out_of: What kind of memory the block is.
            device: The device that is to reach it; None: the host.

        Raises:
            TransferTimeout: The peer did not answer within `timeout` seconds.
            PeerLost: The peer has gone, or there is no way to its memory.
            TransportUnavailable: There is no way to its memory.
        """
        deadline = time.monotonic() + timeout
        address, size, number = self._room(device)
        nbytes = min(block[1], size)
        into = Segment.HOST if device is None else Segment.DEVICE
        with made_current(device):
            handle = self.native.post(
                peer, [(address, nbytes, number)], [(block[0], nbytes, block[2])], into=into, out_of=out_of
            )
            try:
                while not self.native.landed(handle):
                    if time.monotonic() > deadline:
                        raise TransferTimeout(f"the source's NIXL agent did not answer within {timeout:g} s")
                    time.sleep(POLL_SECONDS)
            finally:
                # A peer that sleeps may yet answer: see `leave`. It lands in room that is never given back.
                self.peers.leave(peer, handle)

    def _room(self, device: int | None) -> Block:
        """Return where probes may land; it is never given back, as the arena is not."""
        with self._making_scratch:
            if device is not None and device not in self._scratch:
                address = allocate(device, DEVICE_PROBE_BYTES)
                self._scratch[device] = self.memory.hold(Span(address, DEVICE_PROBE_BYTES, device))
            address, nbytes, number = self._scratch[device]
        return (address, nbytes if device is not None else 1, number)


_shared: Agent | None = None


def shared_agent() -> Agent:
    """Return the agent of this process; it is made by the first call, or when the last one had to be ended.

    Raises:
        TransportUnavailable: NIXL or its backend does not work here.
    """
    global _shared
    with _lock:
        if _shared is None or not _shared.native.usable:
            _shared = Agent()
        return _shared


def _backend() -> str:
    """Return what suits the network cards: EFA is reached by libfabric, all others by UCX."""
    return "LIBFABRIC" if any(card.driver == "efa" for card in rdma_cards()) else "UCX"


def _end_shared() -> None:
    # Before the library's own clean-up, which does not expect agents that still work.
    if _shared is not None:
        _shared.native.end()


def _leave_to_parent() -> None:
    global _shared, _lock
    _lock = threading.Lock()
    if _shared is not None:
        _shared.native.abandon()
        _shared = None


atexit.register(_end_shared)
os.register_at_fork(after_in_child=_leave_to_parent)
