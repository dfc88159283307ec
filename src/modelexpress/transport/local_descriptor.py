"""What a target needs to find the socket of a source on its own host."""

import functools
import os
import stat
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelexpress.errors import TransportUnavailable
from modelexpress.transport.greeting import EXPORT_ID_BYTES
from modelexpress.transport.runtime_directory import MAX_PATH_BYTES

MAX_DESCRIPTOR_BYTES = 1 << 20
MAX_REGIONS = 1 << 16
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_RegionBytes = Annotated[int, Field(ge=0, lt=1 << 47)]


class LocalDescriptor(BaseModel):
    """Where a source's socket is, how large its regions are in bytes, and which of them are device memory.

    The boot id tells hosts apart; device and inode of the socket tell containers of one host apart.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Annotated[int, Field(ge=1, le=1)] = 1
    boot_id: Annotated[str, Field(max_length=64)]
    path: Annotated[str, Field(min_length=1, max_length=MAX_PATH_BYTES, pattern=r"^/[^\x00]*$")]
    device: int
    inode: int
    export: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * EXPORT_ID_BYTES}}}$")]
    region_bytes: Annotated[tuple[_RegionBytes, ...], Field(max_length=MAX_REGIONS, strict=False)]
    device_regions: Annotated[tuple[int, ...], Field(max_length=MAX_REGIONS, strict=False)] = ()

    @classmethod
    def parse(cls, data: bytes) -> "LocalDescriptor":
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
            raise TransportUnavailable(f"not a descriptor of the local transport: {problem['msg']}") from error

    def elsewhere(self) -> str | None:
        """Return why the socket cannot be the source's, seen from here; None when it is."""
        if self.boot_id != boot_id():
            return "the source runs on another host"
        try:
            found = os.stat(self.path)
        except (OSError, ValueError) as error:
            return f"the source's socket is not visible from here: {error}"
        if not stat.S_ISSOCK(found.st_mode) or (found.st_dev, found.st_ino) != (self.device, self.inode):
            return f"{self.path} is not the source's socket: another container, or the source has ended"
        return None


@functools.cache
def boot_id() -> str:
    """Return what names this host since it was started, or '' where the kernel does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
