"""Errors of a worker cross the wire as themselves."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from modelexpress.errors import (
    LeaseExpired,
    ManifestInvalid,
    ModelExpressError,
    PeerError,
    PeerUnreachable,
    SourceBusy,
    SourceGone,
)
from modelexpress.peer.status import answering, calling

RAISED: dict[str, ModelExpressError] = {
    "/gone": SourceGone("it went"),
    "/busy": SourceBusy("it is full"),
    "/expired": LeaseExpired("it ended"),
    "/other": ManifestInvalid("it is wrong"),
}


class Raising(grpc.GenericRpcHandler):
    """A service each of whose methods raises one error."""

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        error = RAISED.get(str(details.method))

        def raise_it(request: bytes, context: grpc.ServicerContext) -> bytes:
            with answering(context):
                assert error is not None
                raise error
            return b""

        return grpc.unary_unary_rpc_method_handler(raise_it) if error else None


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Raising()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def call(address: str, method: str) -> None:
    with calling(address), grpc.insecure_channel(address) as channel:
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        send(b"", timeout=5)


@pytest.mark.parametrize(
    ("method", "kind", "message"),
    [
        ("/gone", SourceGone, "it went"),
        ("/busy", SourceBusy, "it is full"),
        ("/expired", LeaseExpired, "it ended"),
        ("/other", PeerError, "it is wrong"),
        ("/missing", PeerError, "UNIMPLEMENTED"),
    ],
)
def test_an_error_arrives_as_what_it_was(address: str, method: str, kind: type[PeerError], message: str) -> None:
    with pytest.raises(PeerError, match=message) as caught:
        call(address, method)
    assert type(caught.value) is kind
    assert address in str(caught.value)


def test_nobody_there_is_unreachable_and_says_where_to_look() -> None:
    with pytest.raises(PeerUnreachable, match=r"mx sources.*MX_WORKER_HOST"):
        call("127.0.0.1:1", "/gone")
