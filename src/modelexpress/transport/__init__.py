"""How bytes move from a source's regions to a target's memory: the seam, and what implements it."""

from modelexpress.transport.base import Export, LinkLimit, Reader, Run, Transfer, Transport
from modelexpress.transport.local import LocalTransport
from modelexpress.transport.nixl import NixlTransport
from modelexpress.transport.select import Opened, Selection, available, open_first
from modelexpress.transport.tcp import TcpTransport

__all__ = [
    "Export",
    "LinkLimit",
    "LocalTransport",
    "NixlTransport",
    "Opened",
    "Reader",
    "Run",
    "Selection",
    "TcpTransport",
    "Transfer",
    "Transport",
    "available",
    "open_first",
]
