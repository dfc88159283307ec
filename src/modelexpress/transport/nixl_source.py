"""The source's side of `nixl`: it registers its regions, tells readers where they are, and waits until they leave."""

import base64
import select
import threading
from collections.abc import Callable, Mapping, Sequence

from modelexpress.errors import TransportError
from modelexpress.memory import Region
from modelexpress.transport.nixl_agent import Agent
from modelexpress.transport.nixl_descriptor import Handover, NixlDescriptor
from modelexpress.transport.nixl_memory import Span
from modelexpress.transport.nixl_native import Block, Segment
from modelexpress.transport.reception import Reception, ServedExport
from modelexpress.transport.server import GOODBYE_SECONDS, GREETING_SECONDS, Connection
from modelexpress.transport.verdict import Verdict, encode_answer


class NixlExport(ServedExport):
    """Regions that readers read by themselves, without this process doing anything.

    So a revoked lease ends with the reader's consent: it is told, stops posting, waits for what is on its way, and
    hangs up, within milliseconds; `revoke` and `close` return after that, or after `GOODBYE_SECONDS` with a reader
    that does not answer. Such a reader, or one that lies, can go on reading after `revoke`, since NIXL has no
    permissions by reader. After `close` it cannot over RDMA: the keys end with the registration. Between processes
    of one host it can for as long as both run as one user, which the kernel allows without any transport.

    Args:
        reception: Serves the export.
        regions: What is offered.
        agent: Returns the process's agent.

    Raises:
        TransportUnavailable: NIXL does not work here, or cannot register this memory.
    """

    def __init__(self, reception: Reception, regions: Sequence[Region], agent: Callable[[], Agent]) -> None:
        super().__init__(reception)
        self._regions = regions
        self._make_agent = agent
        self._lock = threading.Lock()
        self._agent: Agent | None = None
        self._held: list[Span] = []
        self._descriptor = b""
        try:
            self._handover = self._register()
        except TransportError:
            self.release()
            raise

    @property
    def descriptor(self) -> bytes:
        return self._descriptor

    def place(self, host: str, port: int, tls: bool, boot_id: str) -> None:
        """Say where the export is served."""
        description = NixlDescriptor(
            host=host,
            port=port,
            export=self.export_id.hex(),
            tls=tls,
            region_bytes=tuple(region.nbytes for region in self._regions),
            boot_id=boot_id,
        )
        self._descriptor = description.model_dump_json().encode()

    def serve(self, connection: Connection) -> None:
        sock = connection.sock
        sock.settimeout(GREETING_SECONDS)
        try:
            handover = self._current_handover()
        except TransportError as error:
            sock.sendall(encode_answer(Verdict.BUSY, str(error)))
            return
        sock.sendall(encode_answer(Verdict.GRANTED) + handover)
        # A reader has nothing more to say: the next thing that arrives is that it is gone.
        connection.wait_readable()
        if connection.verdict is not None:
            sock.sendall(encode_answer(connection.verdict))
            # Only the reader knows when its last read has landed. It hangs up then.
            select.select([sock], [], [], GOODBYE_SECONDS)

    def release(self) -> None:
        with self._lock:
            held, self._held = self._held, []
            if self._agent is not None:
                self._agent.memory.let_go(*held)

    def _current_handover(self) -> bytes:
        """Return the message for readers; when the agent had to be ended, that of the next one."""
        with self._lock:
            if self._agent is not None and not self._agent.native.usable:
                self._held = []
                self._handover = self._register()
            return self._handover

    def _register(self) -> bytes:
        full = [Span.of(region) for region in self._regions if region.nbytes]
        if not full:
            return Handover(agent="", places=((0, 0),) * len(self._regions), metadata=b"").encode()
        self._agent = self._make_agent()
        blocks = dict(zip(full, self._agent.memory.hold_all(full), strict=True))
        self._held = full
        return Handover(
            agent=self._agent.name,
            places=tuple((r.address, blocks[Span.of(r)][2] if r.nbytes else 0) for r in self._regions),
            metadata=self._described(blocks, Segment.HOST),
            on_device=frozenset(number for number, r in enumerate(self._regions) if r.device is not None),
            device_metadata=self._described(blocks, Segment.DEVICE),
        ).encode()

    def _described(self, blocks: Mapping[Span, Block], segment: Segment) -> bytes:
        """Return what NIXL says of the regions of one kind, in base64; nothing where there are none."""
        assert self._agent is not None, "there are registrations"
        own = [block for span, block in blocks.items() if span.segment is segment]
        return base64.b64encode(self._agent.native.metadata(own, segment)) if own else b""
