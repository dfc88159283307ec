"""Every error this package raises, in one tree.

ModelExpressError
├── ConfigurationError
├── IdentityError
├── RegistryError
│   ├── RegistryUnreachable
│   ├── RegistryProtocolError
│   ├── RegistryRefused
│   ├── RequestInvalid
│   └── StoreError
│       └── StoreFull
├── PeerError
│   ├── PeerUnreachable
│   ├── SourceGone
│   ├── SourceBusy
│   └── LeaseExpired
├── TransportError
│   ├── TransportUnavailable
│   ├── AccessDenied
│   ├── DeviceError
│   ├── RegionWithdrawn
│   ├── PeerLost
│   └── TransferTimeout
├── TransferError
│   ├── ManifestInvalid
│   ├── ManifestMismatch
│   └── DigestMismatch
├── LoadError
│   ├── NoSourceFound
│   ├── CheckpointError
│   ├── UnsupportedModel
│   ├── NoRoom
│   └── PartialModel
├── ArtifactError
│   ├── ArtifactInvalid
│   ├── ArtifactUnsigned
│   ├── TriedByOther
│   └── CacheBusy
└── DwdpError
    ├── PartitionInvalid
    ├── ExpertsUnsupported
    └── RankLost

A message says what happened, to what, and what to do about it.
"""

from collections.abc import Sequence


class ModelExpressError(Exception):
    """Base of every error of this package."""


class ConfigurationError(ModelExpressError):
    """An argument or option has a value that cannot be used."""


class IdentityError(ModelExpressError):
    """A source identity cannot be built from what was given."""


class RegistryError(ModelExpressError):
    """The registry could not do what was asked."""


class RegistryUnreachable(RegistryError):
    """No registry answered at the address within the deadline."""


class RegistryProtocolError(RegistryError):
    """Something answered at the address, but it does not speak the registry protocol."""


class RegistryRefused(RegistryError):
    """The registry understood the request and refused it."""


class RequestInvalid(RegistryError):
    """A request breaks a rule or a limit of the registry protocol."""


class StoreError(RegistryError):
    """The registry's own storage failed."""


class StoreFull(StoreError):
    """The registry holds as many records or bytes as it accepts."""


class PeerError(ModelExpressError):
    """A worker could not do what another worker asked."""


class PeerUnreachable(PeerError):
    """No worker answered at the address within the deadline."""


class SourceGone(PeerError):
    """The worker at the address is not, or no longer, the source that was asked for."""


class SourceBusy(PeerError):
    """The source has as many readers as it accepts."""


class LeaseExpired(PeerError):
    """The lease ended before its reader was through."""


class TransportError(ModelExpressError):
    """Bytes could not be moved."""


class TransportUnavailable(TransportError):
    """The transport cannot work between these two processes."""


class AccessDenied(TransportError):
    """The source refused this process: wrong user or wrong lease token."""


class DeviceError(TransportError):
    """The CUDA driver is missing, or refused a call."""


class RegionWithdrawn(TransportError):
    """The region is no longer, or never was, offered by the source."""


class PeerLost(TransportError):
    """The source died or closed the connection in mid-transfer."""


class TransferTimeout(TransportError):
    """Nothing arrived for longer than the transfer deadline."""


class TransferError(ModelExpressError):
    """What a source holds and what a target wants do not go together."""


class ManifestInvalid(TransferError):
    """A manifest contradicts itself or its source's regions."""


class ManifestMismatch(TransferError):
    """Source and target differ in names, shapes, dtypes or sizes of tensors.

    Args:
        message: What differs, in a sentence.
        missing: Tensors that the target wants and the source lacks.
        unexpected: Tensors that the source holds and the target lacks.
        different: One sentence for each tensor that both have and that differs.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        different: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.different = tuple(different)


class DigestMismatch(TransferError):
    """Bytes that arrived are not the bytes that the source published.

    Args:
        tensor: Name of the tensor.
        chunk: Index of the chunk within the tensor.
        source: Worker id of the source.
    """

    def __init__(self, tensor: str, chunk: int, source: str) -> None:
        super().__init__(
            f"chunk {chunk} of tensor '{tensor}' from source {source} does not match its digest; "
            "the source's memory changed after publication or the bytes were damaged on the way: "
            "restart that source"
        )
        self.tensor = tensor
        self.chunk = chunk
        self.source = source


class LoadError(ModelExpressError):
    """A model could not be loaded; the causes of every attempt are in the message and in `causes`."""

    def __init__(self, message: str, causes: Sequence[BaseException] = ()) -> None:
        super().__init__(message)
        self.causes = tuple(causes)


class NoSourceFound(LoadError):
    """The registry knows no ready source of this material."""


class CheckpointError(LoadError):
    """A checkpoint folder is missing, incomplete or damaged."""


class UnsupportedModel(LoadError):
    """The model holds tensors that cannot be moved."""


class NoRoom(LoadError):
    """The memory that the model needs is not there; nothing of the model was changed."""


class PartialModel(LoadError):
    """The load failed after weights had been overwritten: the model must not be used."""


class ArtifactError(ModelExpressError):
    """A cache artifact could not be sealed, moved or installed; the engine compiles for itself instead."""


class ArtifactInvalid(ArtifactError):
    """A sealed manifest contradicts itself, its id, or the bytes that came with it."""


class ArtifactUnsigned(ArtifactError):
    """The policy demands a signature that is missing, wrong, or by a key that is not listed."""


class TriedByOther(ArtifactError):
    """Another process of this host has just failed to bring the artifact, and has said why."""


class CacheBusy(ArtifactError):
    """A cache kept changing while it was read or written."""


class DwdpError(ModelExpressError):
    """Ranks could not share the experts of a model."""


class PartitionInvalid(DwdpError, ValueError):
    """The experts cannot be spread over the ranks in the way that was asked for."""


class ExpertsUnsupported(DwdpError):
    """The model's experts are not kept in a way that ranks can share."""


class RankLost(DwdpError):
    """Another rank of the group ended, or did not answer within the deadline."""
