"""The client of the package index, `modelexpress` 0.7.0: its own transfer class over NIXL, source and target.

It runs where that package goes before ours on the path: nothing of ours may be imported here. What it does is what
that package's loading strategy does with the class, with pipes in the place of its metadata server.
"""

import base64
import os
import sys
import time
from dataclasses import asdict
from typing import Any

from modelexpress.nixl_transfer import NixlTransferManager, is_nixl_available  # type: ignore[import-not-found]
from modelexpress.types import TensorDescriptor  # type: ignore[import-not-found]

from benchmarks.beside.children import hear, say
from benchmarks.beside.tensors import (
    REPETITIONS,
    Tensors,
    allocate,
    arrived,
    chosen_shapes,
    common_options,
    fill,
    finish,
    warm_up,
)

_TIMEOUT = 120.0


class HostBackend:
    """What the class asks of an accelerator, for memory of the host: only to try the logic without one."""

    name = "host"
    torch_device_type = "cpu"
    nixl_mem_type = "DRAM"

    def set_device(self, device_id: int) -> None:
        """There is none."""

    def synchronize(self, device_id: int | None = None) -> None:
        """There is nothing to wait for."""

    def supports_pool_reg(self) -> bool:
        """Allocations are found by CUDA's driver alone."""
        return False


def main() -> None:
    """Register the tensors, then be the source until standard input ends, or the target that it describes."""
    parser = common_options()
    parser.add_argument("--source", action="store_true")
    parser.add_argument("--pooled", action="store_true", help="register allocations, not tensors")
    given = parser.parse_args()
    os.environ["MX_POOL_REG"] = str(int(given.pooled))
    if not is_nixl_available():
        sys.exit("the client finds no NIXL: neither nixl_cu13 nor nixl can be imported")
    tensors = allocate(chosen_shapes(given), given.device)
    if given.source:
        fill(tensors)
    else:
        for tensor in tensors.values():
            tensor.zero_()
    warm_up(given.device)
    finish(given.device)
    manager, prepared = _prepare(tensors, given)
    if given.source:
        _serve(manager, prepared)
    else:
        say(**prepared, **_receive(manager, hear(), tensors))
    manager.shutdown()


def _prepare(tensors: Tensors, given: Any) -> tuple[Any, dict[str, float]]:
    """Return the class at work, and what its agent and the registration took."""
    backend = None if given.device == "cuda" else HostBackend()
    started = time.perf_counter()
    name = "source" if given.source else "target"
    manager = NixlTransferManager(name, 0, accelerator_backend=backend)
    manager.initialize()
    agent = time.perf_counter()
    manager.register_tensors(tensors)
    return manager, {"agent": agent - started, "registration": time.perf_counter() - agent}


def _serve(manager: Any, prepared: dict[str, float]) -> None:
    metadata = base64.b64encode(manager.nixl_metadata).decode()
    described = [asdict(descriptor) for descriptor in manager.tensor_descriptors]
    say(**prepared, metadata=metadata, metadata_bytes=len(manager.nixl_metadata), tensors=described)
    sys.stdin.read()


def _receive(manager: Any, source: dict[str, Any], tensors: Tensors) -> dict[str, Any]:
    """Receive several times; what the first one takes includes making the source known."""
    descriptors = [TensorDescriptor(**fields) for fields in source["tensors"]]
    metadata = base64.b64decode(source["metadata"])
    found, count = [], 0
    name = None
    for _ in range(REPETITIONS + 1):
        started = time.perf_counter()
        name = name or manager.add_remote_agent(metadata)
        _, count, _ = manager.receive_from_source(
            b"", descriptors, timeout_seconds=_TIMEOUT, remote_agent_name=name, require_exact_match=True
        )
        found.append(time.perf_counter() - started)
    return {"seconds": found, "received": count, "right": count == len(tensors) and arrived(tensors)}


if __name__ == "__main__":
    main()
