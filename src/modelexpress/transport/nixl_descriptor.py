"""What a target needs to find the port of a source, and what the source hands over behind it."""

import hashlib
import socket
import struct
from typing import Annotated

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, ValidationError

from modelexpress.errors import PeerLost, TransferTimeout, TransportUnavailable
from modelexpress.transport.greeting import receive_exactly
from modelexpress.transport.tcp_descriptor import MAX_DESCRIPTOR_BYTES, MAX_REGIONS, TcpDescriptor

_HEAD = struct.Struct("<4sI32s")
_MAGIC = b"MXNX"
_MAX_HANDOVER_BYTES = 64 << 20

_Number = Annotated[int, Field(ge=0, lt=1 << 64)]


class NixlDescriptor(TcpDescriptor):
    """Where an export is served, and the boot id of its host. What NIXL needs is handed over there, not here."""

    boot_id: Annotated[str, Field(max_length=64)]

    @classmethod
    def parse(cls, data: bytes) -> "NixlDescriptor":
        if len(data) > MAX_DESCRIPTOR_BYTES:
            raise TransportUnavailable(f"a descriptor of {len(data)} bytes is too large")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            raise TransportUnavailable(f"not a descriptor of the nixl transport: {problem['msg']}") from error


class Handover(BaseModel):
    """What a reader that was let in is told: it is what makes the source's memory readable.

    Args:
        agent: Name of the source's agent; empty when no region has any bytes.
        places: Address of each region, and what NIXL takes for its device.
        metadata: How the agent and the regions in host memory are reached, for NIXL.
        on_device: Numbers of the regions that are device memory.
        device_metadata: How the agent and those are reached.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    agent: Annotated[str, Field(max_length=128)]
    places: Annotated[tuple[tuple[_Number, _Number], ...], Field(max_length=MAX_REGIONS)]
    metadata: Base64Bytes
    on_device: frozenset[int] = frozenset()
    device_metadata: Base64Bytes = b""

    def encode(self) -> bytes:
        """Return the message as it travels. Its hash keeps damage away from NIXL, which would crash."""
        body = self.model_dump_json().encode()
        return _HEAD.pack(_MAGIC, len(body), hashlib.sha256(body).digest()) + body


def receive_handover(sock: socket.socket, deadline: float) -> Handover:
    """Return what the source says after it has let this reader in.

    Args:
        sock: The connection; its timeout is changed.
        deadline: When the message must be complete, on the monotonic clock.

    Raises:
        TransportUnavailable: The source says something else.
        PeerLost: The connection broke.
        TransferTimeout: The deadline passed.
    """
    try:
        magic, length, digest = _HEAD.unpack(receive_exactly(sock, _HEAD.size, deadline))
        if magic != _MAGIC or length > _MAX_HANDOVER_BYTES:
            raise TransportUnavailable("the source's message is not one of the nixl transport")
        body = receive_exactly(sock, length, deadline)
    except TimeoutError as error:
        raise TransferTimeout("the source did not say in time how to reach it; is its process stopped?") from error
    except OSError as error:
        raise PeerLost(f"the source closed the connection: {error}") from error
    if hashlib.sha256(body).digest() != digest:
        raise TransportUnavailable("the source's message was damaged on the way")
    try:
        return Handover.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise TransportUnavailable(
            f"the source's message is not one of the nixl transport: {problem['msg']}"
        ) from error
