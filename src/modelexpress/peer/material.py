"""A material as a worker serves it: its manifest, its files, and the exports of its regions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from modelexpress.errors import TransportUnavailable
from modelexpress.identity import SourceIdentity
from modelexpress.memory import Region
from modelexpress.peer.joining import Admission
from modelexpress.transfer.manifest import Manifest
from modelexpress.transfer.prefix import Prefix
from modelexpress.transport import Export, Transport
from modelexpress.wire.artifact import SealedArtifact
from modelexpress.wire.peer import LeaseGrant, ManifestHead
from modelexpress.wire.records import FileSpec, TensorDescriptor, TransportOffer


@dataclass(frozen=True)
class Material:
    """What a worker offers under one identity.

    `owners` keep the memory of the regions alive. `artifact` is the sealed manifest where the tensors are the files of
    a cache. `accelerator` is what the memory belongs to: "cuda" where any of it is a GPU's, unless it is given.
    """

    identity: SourceIdentity
    rank: int
    manifest: Manifest
    regions: tuple[Region, ...]
    owners: tuple[object, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)
    accelerator: str = ""
    artifact: SealedArtifact | None = None

    def __post_init__(self) -> None:
        if not self.accelerator and any(region.device is not None for region in self.regions):
            object.__setattr__(self, "accelerator", "cuda")

    def descriptors(self) -> Iterator[TensorDescriptor]:
        """Yield the tensors as `model_express.p2p` describes them."""
        for tensor in self.manifest.tensors:
            address = self.regions[tensor.region].address + tensor.offset
            yield TensorDescriptor(tensor.name, address, tensor.nbytes, 0, f"torch.{tensor.dtype}")


@dataclass(frozen=True)
class Exports:
    """Regions that are open on every transport that takes them.

    Args:
        exports: By the name of the transport.
        refused: Why the other transports do not take them, by name.
    """

    exports: tuple[tuple[str, Export], ...]
    refused: tuple[tuple[str, str], ...]

    @classmethod
    def open(cls, regions: Sequence[Region], transports: Sequence[Transport]) -> "Exports":
        """Export regions.

        Raises:
            TransportUnavailable: No transport can offer them.
        """
        exports: list[tuple[str, Export]] = []
        refused: list[tuple[str, str]] = []
        for transport in transports:
            try:
                exports.append((transport.name, transport.export(regions)))
            except TransportUnavailable as error:
                refused.append((transport.name, str(error)))
        if not exports:
            raise TransportUnavailable(f"no transport can offer this memory: {refused}")
        return cls(tuple(exports), tuple(refused))

    def close(self) -> None:
        """Withdraw the regions from every transport."""
        for _, export in self.exports:
            export.close()


@dataclass(frozen=True)
class Offer:
    """A material that may be read.

    Args:
        material: What is offered.
        prefix: How much of it is there.
        admission: Who may read it here.
        exports: Its regions.
    """

    material: Material
    prefix: Prefix
    admission: Admission
    exports: Exports

    def grant(self, lease_id: str, ttl: float) -> LeaseGrant:
        """Let the holder of a lease in, and return what it needs to know."""
        for _, export in self.exports.exports:
            export.grant(lease_id)
        manifest = self.material.manifest
        head = ManifestHead(
            scope=manifest.scope,
            digest_algorithm=manifest.digest_algorithm,
            chunk_bytes=manifest.chunk_bytes,
            tensor_count=len(manifest.tensors),
            total_bytes=manifest.total_bytes,
            region_bytes=manifest.region_bytes,
            files=manifest.files,
        )
        offers = [TransportOffer(name, export.descriptor) for name, export in self.exports.exports]
        offers += [TransportOffer(name, b"", reason) for name, reason in self.exports.refused]
        return LeaseGrant(lease_id, ttl, head, tuple(offers), self.prefix.value)

    def revoke(self, lease_id: str) -> None:
        """Refuse the holder of a lease from now on."""
        for _, export in self.exports.exports:
            export.revoke(lease_id)

    def close(self) -> None:
        """Withdraw the regions from every transport."""
        self.prefix.end("the source has withdrawn what it was still receiving")
        self.exports.close()


def file_specs(files: Mapping[str, bytes]) -> tuple[FileSpec, ...]:
    """Return path, size and SHA-256 of each file, by path."""
    return tuple(FileSpec(path, len(data), sha256(data).hexdigest()) for path, data in sorted(files.items()))
