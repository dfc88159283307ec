"""Identities and records that tests publish."""

from typing import Any

from modelexpress.identity import SourceIdentity
from modelexpress.wire.records import SourceStatus, TensorDescriptor, WorkerRecord

LLAMA = SourceIdentity(model_name="Meta/Llama-3", mx_version="1.0.0", dtype="bfloat16", tensor_parallel_size=2)
QWEN = SourceIdentity(model_name="qwen/qwen3", mx_version="1.0.0", dtype="bfloat16")


def record(worker_id: str = "worker-0", **fields: Any) -> WorkerRecord:
    """Return a READY record with two tensors, with other fields as given."""
    tensors = (TensorDescriptor("a", 2**63, 2**40, 7, "bf16"), TensorDescriptor("é", 0, 0, 0, ""))
    defaults: dict[str, Any] = {"status": SourceStatus.READY, "tensors": tensors}
    return WorkerRecord(worker_id=worker_id, **defaults | fields)
