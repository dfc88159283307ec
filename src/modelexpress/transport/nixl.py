"""The transport `nixl`: RDMA between hosts, by NVIDIA's transfer library over UCX or libfabric.

Readers introduce themselves on a connection as with `tcp`, and are told there what NIXL needs to read the source's
memory; its bytes travel without the source's help. Where UCX knows no better way than TCP, this transport refuses.
Memory of GPUs is read where it is: by network cards that reach it, or over NVLink between GPUs of one host.
"""

import select
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from modelexpress.errors import PeerLost, TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport.base import Export, LinkLimit, Reader, Transport
from modelexpress.transport.door import Door
from modelexpress.transport.greeting import Greeting
from modelexpress.transport.limits import copy_limit
from modelexpress.transport.local_descriptor import boot_id
from modelexpress.transport.nixl_agent import Agent, shared_agent
from modelexpress.transport.nixl_cards import rdma_cards
from modelexpress.transport.nixl_descriptor import Handover, NixlDescriptor, receive_handover
from modelexpress.transport.nixl_device import made_current
from modelexpress.transport.nixl_library import missing
from modelexpress.transport.nixl_native import Segment
from modelexpress.transport.nixl_reader import NixlReader, SourceRegion
from modelexpress.transport.nixl_source import NixlExport
from modelexpress.transport.reception import Reception

if TYPE_CHECKING:
    import socket
    import ssl

_LAST_WORD_SECONDS = 0.2
"""How long after a failed read the source's death may take to show on its connection."""


class NixlTransport(Transport):
    """Moves bytes between processes that RDMA connects, or that share a host.

    The process's agent is made by the first export or reader that has bytes, and stays when this is closed.

    Args:
        host: Address on which a source listens for readers; it is not the one that bytes travel to.
        port: Port on which a source listens; 0: any free one.
        advertised_host: Name under which targets reach the source; empty: `host`.
        stall_timeout: Seconds without a byte after which the other side counts as lost.
        server_tls: Makes a source encrypt what is said to readers. What NIXL moves is not encrypted.
        client_tls: How a target checks the certificate of a source that encrypts.
        without_cards: Whether to work on a host that has no RDMA network card, where others are faster.
        agent: Returns the process's agent.
    """

    name = "nixl"

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertised_host: str = "",
        stall_timeout: float = 10.0,
        server_tls: "ssl.SSLContext | None" = None,
        client_tls: "ssl.SSLContext | None" = None,
        without_cards: bool = False,
        agent: Callable[[], Agent] = shared_agent,
    ) -> None:
        self._door = Door(host, port, stall_timeout, server_tls, client_tls)
        self._advertised_host = advertised_host or host
        self._stall_timeout = stall_timeout
        self._without_cards = without_cards
        self._agent = agent
        self._reception = Reception(self._door.listen, self._door.prepare, self.name)

    def unavailable(self) -> str | None:
        if not (self._without_cards or rdma_cards()):
            return "no RDMA network card of this host is up"
        return missing() or self._door.unavailable()

    def export(self, regions: Sequence[Region]) -> Export:
        export = NixlExport(self._reception, regions, self._agent)
        try:
            self._reception.add(export)
        except TransportUnavailable:
            export.release()
            raise
        export.place(self._advertised_host, self._door.port, self._door.encrypts, boot_id())
        return export

    def open(self, descriptor: bytes, token: str, device: int | None = None) -> Reader:
        source = NixlDescriptor.parse(descriptor)
        if source.boot_id != boot_id() and not rdma_cards():
            raise TransportUnavailable("the source runs on another host, and this one has no RDMA network card")
        greeting = Greeting(bytes.fromhex(source.export), token.encode())
        with ExitStack() as undo:
            sock = self._door.call(source.host, source.port, source.tls, greeting, undo)
            handover = receive_handover(sock, time.monotonic() + self._stall_timeout)
            regions = _regions(source, handover)
            agent = self._agent()
            peer = handover.agent or agent.name
            with made_current(device):
                agent.peers.connect(peer, *filter(None, (handover.metadata, handover.device_metadata)))
            undo.callback(agent.peers.disconnect, peer, lost=True)
            for segment in Segment:
                self._probe(agent, peer, [r for r in regions if r.segment is segment], device, sock)
            undo.pop_all()
        return NixlReader(sock, agent, peer, regions, self._stall_timeout, device)

    def limit(self, descriptor: bytes) -> LinkLimit | None:
        if NixlDescriptor.parse(descriptor).boot_id == boot_id():
            return copy_limit()
        for card in rdma_cards():
            return LinkLimit(card.bytes_per_second, f"line rate of {card.name}, the fastest RDMA card")
        return None

    def close(self) -> None:
        self._reception.close()

    def _probe(
        self, agent: Agent, peer: str, regions: Sequence[SourceRegion], device: int | None, sock: "socket.socket"
    ) -> None:
        """Read a little of regions of one kind, so that the agents are connected before any read that matters."""
        region = next((region for region in regions if region.block[1]), None)
        if region is None:
            return
        try:
            agent.probe(peer, region.block, self._stall_timeout, out_of=region.segment, device=device)
        except (PeerLost, TransportUnavailable) as error:
            if isinstance(error, PeerLost) and select.select([sock], [], [], _LAST_WORD_SECONDS)[0]:
                raise  # it died, or said goodbye
            raise TransportUnavailable(_no_way(region.segment, device)) from error


def _no_way(source: Segment, device: int | None) -> str:
    if source is Segment.HOST and device is None:
        return "neither RDMA nor shared memory leads to the source's memory"
    begin = "memory of a GPU" if source is Segment.DEVICE else "host memory"
    end = "host memory" if device is None else f"GPU {device}"
    why = (
        "; NVLink does where the source's memory comes from cudaMalloc, not from expandable segments"
        if source is Segment.DEVICE and device is not None
        else ", which takes a network card that reaches the memory of GPUs"
    )
    return f"NIXL finds no way from the source's {begin} to {end}{why}"


def _regions(source: NixlDescriptor, handover: Handover) -> list[SourceRegion]:
    if len(handover.places) != len(source.region_bytes):
        raise TransportUnavailable(
            f"the source offers {len(handover.places)} regions, its descriptor {len(source.region_bytes)}"
        )
    sizes = zip(handover.places, source.region_bytes, strict=True)
    return [
        SourceRegion((address, nbytes, device), Segment.DEVICE if number in handover.on_device else Segment.HOST)
        for number, ((address, device), nbytes) in enumerate(sizes)
    ]
