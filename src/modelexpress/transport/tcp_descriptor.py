"""What a target needs to find the port of a source."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelexpress.errors import TransportUnavailable
from modelexpress.transport.greeting import EXPORT_ID_BYTES

MAX_DESCRIPTOR_BYTES = 1 << 20
MAX_REGIONS = 1 << 16

_RegionBytes = Annotated[int, Field(ge=0, lt=1 << 63)]


class TcpDescriptor(BaseModel):
    """Where an export is served, whether the connection is encrypted, and how large the regions are in bytes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Annotated[int, Field(ge=1, le=1)] = 1
    host: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9._:%-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    export: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * EXPORT_ID_BYTES}}}$")]
    tls: bool
    region_bytes: Annotated[tuple[_RegionBytes, ...], Field(max_length=MAX_REGIONS, strict=False)]

    @classmethod
    def parse(cls, data: bytes) -> "TcpDescriptor":
        """Return the descriptor that `data` encodes.

        Raises:
            TransportUnavailable: It encodes none of this version.
        """
        if len(data) > MAX_DESCRIPTOR_BYTES:
            raise TransportUnavailable(f"a descriptor of {len(data)} bytes is too large")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            raise TransportUnavailable(f"not a descriptor of the tcp transport: {problem['msg']}") from error
