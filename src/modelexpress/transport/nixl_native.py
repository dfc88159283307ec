"""One native NIXL agent, used only in the ways that are known not to crash or hang a process.

What NIXL 1.5.1 over UCX does, found by experiment and in its sources, and what follows here:

- A transfer that was posted cannot be cancelled: releasing its handle, removing the peer and deregistering the
  memory all leave it running, and its bytes land whenever the peer wakes up. Only the end of the agent stops it.
- Deregistering memory that such a transfer still uses frees what its completion will touch, and a peer that is
  removed frees the handles of its transfers, and keys that a transfer looks at when a peer that slept while the two
  connected goes on. So both wait until no handle is left, and a handle stays until its transfer is over.
- Reads between processes of a host are copies by this process, within the calls that make progress. A destination
  that is freed before `Reader.close` has returned is written to all the same: the heap is then found damaged later,
  in a place that has nothing to do with it.
- UCX emulates reads over TCP where it finds no better way. Then a source that answers a target which has just
  died aborts ("Fatal: unexpected error: Endpoint timeout"), and a frozen source delays bytes for ever. So
  emulation is off: what is left (RDMA, NVLink, copies between processes of a host) ends or fails by itself.
- Metadata is parsed without checks: damaged metadata crashes the process that loads it.
- Between GPUs of one host UCX copies on one stream of its own, which survives the source and the agent: `settle` in
  nixl_device.py waits for what is left there. Memory of other processes that it has mapped stays mapped until this
  process ends (openucx/ucx#11753), and cannot be mapped at all where it comes from virtual memory management, as
  PyTorch's expandable segments do, unless the host has fabric handles.
- UCX looks at the current device when it meets a key of device memory for the first time, and finds such memory out of
  reach where none is current. The UCX plugin does not look at the device of a block; libfabric's does.
"""

import ctypes
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from typing import Any

from modelexpress.errors import PeerLost
from modelexpress.transport.nixl_library import NixlLibrary

Block = tuple[int, int, int]
"""Address, bytes, and what NIXL takes for the device: see `Registrations` in nixl_memory.py."""


class Segment(Enum):
    """Kinds of memory, by NIXL's names."""

    HOST = "DRAM_SEG"
    DEVICE = "VRAM_SEG"


_REGISTERING = {
    Segment.HOST: "register memory",
    Segment.DEVICE: "register the memory of a GPU, which its UCX may have been built or set up without",
}
_NEEDS = {
    "UCX": "UCX_TLS, if it is set, must contain tcp, and cuda for GPUs; UCX_NET_DEVICES must name what is there",
    "LIBFABRIC": "it needs libfabric, its EFA provider and the libraries that NIXL's plugin names (ldd shows them)",
}
PROGRESS_SECONDS = 0.05
"""How long the progress thread sleeps when nothing wakes it; UCX is known to forget to, now and then."""


class NativeAgent:
    """Threads may share it. Every method raises PeerLost once the agent was ended or inherited by a fork.

    Args:
        library: NIXL.
        name: The agent's name, unique among all that ever meet.
        backend: `UCX` or `LIBFABRIC`.
        settings: UCX settings without their prefix. They apply to this agent only; the environment is not touched,
            and a variable set there wins.

    Raises:
        TransportUnavailable: The backend does not work here.
    """

    def __init__(self, library: NixlLibrary, name: str, backend: str, settings: Mapping[str, str]) -> None:
        native = library.native
        self.name = name
        self.backend = backend
        self._library = library
        self._owner = os.getpid()
        self._idle = threading.Condition()
        self._inside = 0
        self._handles: set[int] = set()
        config = native.nixlAgentConfig()
        config.useProgThread = True
        config.pthrDelay = int(PROGRESS_SECONDS * 1e6)
        config.syncMode = native.NIXL_THREAD_SYNC_RW
        options = {"engine_config": ",".join(f"{key}={value}" for key, value in settings.items())}
        with library.translated(f"start its backend {backend}; {_NEEDS[backend]}"):
            self._agent: Any = native.nixlAgent(name, config)
            self._backends = [self._agent.createBackend(backend, options if backend == "UCX" else {})]

    @property
    def usable(self) -> bool:
        """Whether the agent still works in this process."""
        return self._agent is not None and os.getpid() == self._owner

    def register(self, *blocks: Block, segment: Segment = Segment.HOST) -> None:
        """Let transfers use ranges of memory, which must stay mapped until `deregister`; all of them or none."""
        with self._using(_REGISTERING[segment]) as agent:
            agent.registerMem(self._registration(blocks, segment), self._backends)

    def deregister(self, *blocks: Block, segment: Segment = Segment.HOST) -> None:
        """Take ranges back; no transfer may use them any more."""
        with self._using("deregister memory") as agent:
            agent.deregisterMem(self._registration(blocks, segment), self._backends)

    def metadata(self, blocks: Sequence[Block], segment: Segment = Segment.HOST) -> bytes:
        """Return what another agent needs to reach this one and to read these registered ranges."""
        with self._using("describe its memory") as agent:
            described: bytes = agent.getLocalPartialMD(self._registration(blocks, segment), True, self._backends)
            return described

    def add_peer(self, metadata: bytes) -> str:
        """Load another agent's metadata, on top of what is known of it, and return its name."""
        with self._using("reach the source") as agent:
            loaded = agent.loadRemoteMD(metadata)
            return loaded.decode() if isinstance(loaded, bytes) else str(loaded)

    def remove_peer(self, name: str) -> None:
        """Forget another agent; no handle of a transfer from it may be left."""
        with self._using("disconnect from the source") as agent:
            agent.invalidateRemoteMD(name)

    def post(
        self,
        peer: str,
        local: Sequence[Block],
        remote: Sequence[Block],
        *,
        into: Segment = Segment.HOST,
        out_of: Segment = Segment.HOST,
    ) -> int:
        """Start reading the `remote` blocks of a peer, all of one kind, into the `local` ones and return the handle.

        Copies between the host memory of processes of one host happen within this call.
        """
        native = self._library.native
        with self._using("read from the source") as agent:
            handle: int = agent.createXferReq(
                native.NIXL_READ,
                native.nixlXferDList(getattr(native, into.value), list(local)),
                native.nixlXferDList(getattr(native, out_of.value), list(remote)),
                peer,
                b"",
                self._backends,
            )
            self._handles.add(handle)
            try:
                agent.postXferReq(handle, b"")
            except self._library.errors:
                self._release(agent, handle)
                raise
        return handle

    def landed(self, handle: int) -> bool:
        """Return whether a transfer is through; its handle must then be released."""
        with self._using("finish reading from the source") as agent:
            return bool(agent.getXferStatus(handle) == self._library.native.NIXL_SUCCESS)

    def release(self, handle: int) -> None:
        """Give a handle back, once; its transfer must be through, have failed, or write where nobody looks."""
        with self._using("release a transfer") as agent:
            self._release(agent, handle)

    def end(self) -> None:
        """Destroy the agent: when this returns, no byte of any of its transfers lands any more."""
        if os.getpid() != self._owner:
            return
        with self._idle:
            agent, self._agent = self._agent, None
            self._idle.wait_for(lambda: self._inside == 0)
        if agent is not None:
            for handle in tuple(self._handles):
                with suppress(*self._library.errors):
                    self._release(agent, handle)

    def abandon(self) -> None:
        """Leave the agent to the parent of this forked process.

        Its threads are not here: to destroy it would wait for them for ever, so it is never destroyed.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._agent))

    def _release(self, agent: Any, handle: int) -> None:
        # Whatever happens, never twice: that would free it twice.
        self._handles.discard(handle)
        agent.releaseXferReq(handle)

    def _registration(self, blocks: Sequence[Block], segment: Segment) -> Any:
        native = self._library.native
        return native.nixlRegDList(getattr(native, segment.value), [(*block, "") for block in blocks])

    @contextmanager
    def _using(self, doing: str) -> Iterator[Any]:
        if os.getpid() != self._owner:
            raise PeerLost("a NIXL agent does not survive a fork; open the source again in this process")
        with self._idle:
            agent = self._agent
            if agent is None:
                raise PeerLost("the NIXL agent of this process was ended; open the source again")
            self._inside += 1
        try:
            with self._library.translated(doing):
                yield agent
        finally:
            with self._idle:
                self._inside -= 1
                self._idle.notify_all()
