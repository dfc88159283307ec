"""The limit that benchmarks/registry.py compares with: a gRPC server in Python that keeps nothing and just answers."""

import asyncio

import grpc
import grpc.aio

from modelexpress.wire.p2p_service import SERVICE_NAME
from modelexpress.wire.records import SourceRef
from modelexpress.wire.registry_answers import encode_listing, encode_updated

RANKS = 8


async def main() -> None:
    """Answer every heartbeat and listing with the same bytes until the process ends."""
    listing = encode_listing(SourceRef(source_id="0" * 16, worker_id=f"worker-{n}") for n in range(RANKS))
    answers = {"UpdateStatus": encode_updated(True), "ListSources": listing}

    def handler(answer: bytes) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def call(_request: bytes, _context: object) -> bytes:
            return answer

        return grpc.unary_unary_rpc_method_handler(call)

    server = grpc.aio.server()
    handlers = {name: handler(answer) for name, answer in answers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
