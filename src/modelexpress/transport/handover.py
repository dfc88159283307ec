"""What a source hands over to let device memory be mapped: one message on the connection of `local`."""

import socket
import struct
import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelexpress.errors import PeerLost, TransportUnavailable
from modelexpress.memory.cuda_share import IpcShare, VmmShare
from modelexpress.transport.greeting import receive_exactly

_LENGTH = struct.Struct("<I")
_MOST_BYTES = 16 << 20


class Handover(BaseModel):
    """How each device region is mapped, in the order of the regions; file descriptors follow in the same order."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    shares: list[Annotated[IpcShare | VmmShare, Field(discriminator="kind")]]

    def send(self, sock: socket.socket) -> None:
        """Hand it over.

        Raises:
            OSError: The connection broke.
        """
        data = self.model_dump_json().encode()
        sock.sendall(_LENGTH.pack(len(data)) + data)

    @classmethod
    def receive(cls, sock: socket.socket, regions: int, timeout: float) -> "Handover":
        """Return what the source hands over for so many regions.

        Raises:
            TransportUnavailable: It is none, or for another number of regions.
            PeerLost: The connection broke.
        """
        deadline = time.monotonic() + timeout
        try:
            (length,) = _LENGTH.unpack(receive_exactly(sock, _LENGTH.size, deadline))
            if length > _MOST_BYTES:
                raise TransportUnavailable(f"a handover of {length} bytes is too large")
            found = cls.model_validate_json(receive_exactly(sock, length, deadline))
        except OSError as error:
            raise PeerLost(f"the source did not hand over its device memory: {error}") from error
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]["msg"]
            raise TransportUnavailable(f"the source's device memory cannot be understood: {problem}") from error
        if len(found.shares) != regions:
            raise TransportUnavailable(f"{regions} device regions were announced, {len(found.shares)} handed over")
        return found
