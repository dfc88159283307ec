"""Conversions of the messages of `model_express.p2p.WorkerService`."""

from collections.abc import Iterable

from modelexpress.wire import p2p_pb2 as pb
from modelexpress.wire.records import TensorDescriptor


def manifest_to_message(
    source_id: str, worker_id: str, rank: int, accelerator: str, tensors: Iterable[TensorDescriptor]
) -> pb.GetTensorManifestResponse:
    """Return the answer to GetTensorManifest."""
    return pb.GetTensorManifestResponse(
        tensors=[
            pb.TensorDescriptor(name=t.name, addr=t.addr, size=t.size, device_id=t.device_id, dtype=t.dtype)
            for t in tensors
        ],
        mx_source_id=source_id,
        worker_rank=rank,
        accelerator=accelerator,
        worker_id=worker_id,
    )
