"""What travels on the connections: what is sent is what is understood, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import AccessDenied, RegionWithdrawn, TransportUnavailable
from modelexpress.transport import Run
from modelexpress.transport.crew import PART_BYTES, PART_RUNS
from modelexpress.transport.local_descriptor import LocalDescriptor
from modelexpress.transport.tcp_descriptor import TcpDescriptor
from modelexpress.transport.tcp_protocol import RequestStream, encode_request
from modelexpress.transport.verdict import (
    ANSWER_BYTES,
    MAX_MESSAGE_BYTES,
    REASONS,
    Verdict,
    decode_answer,
    encode_answer,
    error_of,
)


def requests() -> st.SearchStrategy[list[Run]]:
    size = PART_BYTES // 8
    run = st.builds(Run, st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.just(0), st.integers(0, size))
    return st.lists(run, min_size=1, max_size=8)


@given(st.lists(requests(), max_size=5), st.integers(1, 100))
def test_requests_are_understood_however_they_are_cut(sent: list[list[Run]], step: int) -> None:
    data = b"".join(map(encode_request, sent))
    stream = RequestStream()
    received = [runs for start in range(0, len(data), step) for runs in stream.feed(data[start : start + step])]
    assert received == sent


@pytest.mark.parametrize("runs", [[Run(0, 0, 0, 1)] * (PART_RUNS + 1), [Run(0, 0, 0, PART_BYTES), Run(0, 0, 0, 1)], []])
def test_requests_for_too_much_are_refused(runs: list[Run]) -> None:
    with pytest.raises(TransportUnavailable, match="a request for"):
        list(RequestStream().feed(encode_request(runs)))


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_garbage_is_refused_or_waited_for(data: list[bytes]) -> None:
    stream = RequestStream()
    try:
        for piece in data:
            list(stream.feed(piece))
    except TransportUnavailable:
        return


@given(st.sampled_from(Verdict), st.text(max_size=2000))
def test_answers_come_back(verdict: Verdict, message: str) -> None:
    data = encode_answer(verdict, message)
    got, length = decode_answer(data[:ANSWER_BYTES])
    assert got is verdict
    assert length == len(data) - ANSWER_BYTES <= MAX_MESSAGE_BYTES


@given(st.binary(min_size=ANSWER_BYTES, max_size=ANSWER_BYTES))
def test_other_answers_are_refused(data: bytes) -> None:
    try:
        verdict, length = decode_answer(data)
    except TransportUnavailable:
        return
    assert verdict in Verdict
    assert length <= MAX_MESSAGE_BYTES


def test_every_refusal_is_an_error_with_a_reason() -> None:
    for verdict in set(Verdict) - {Verdict.GRANTED, Verdict.OUT_OF_RANGE}:
        assert str(error_of(verdict)) == REASONS[verdict]
    assert isinstance(error_of(Verdict.DENIED), AccessDenied)
    assert isinstance(error_of(Verdict.WITHDRAWN), RegionWithdrawn)
    assert str(error_of(Verdict.OUT_OF_RANGE, b"region 7")) == "region 7"


@pytest.mark.parametrize("kind", [LocalDescriptor, TcpDescriptor])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b'{"version": 2}',
        b"\xff",
        b"[" * 10_000,
        b"x" * (2 << 20),
        b'{"version":1,"host":"a b","port":1,"export":"00","tls":false,"region_bytes":[]}',
        b'{"version":1,"host":"a","port":0,"export":"%s","tls":false,"region_bytes":[]}' % (b"0" * 32),
        b'{"version":1,"host":"a","port":"1","export":"%s","tls":false,"region_bytes":[]}' % (b"0" * 32),
        b'{"version":1,"host":"a","port":1,"export":"%s","tls":false,"region_bytes":[-1]}' % (b"0" * 32),
        b'{"version":1,"host":"a","port":1,"export":"%s","tls":false,"region_bytes":[0.5]}' % (b"0" * 32),
    ],
)
def test_a_descriptor_of_anything_else_is_refused(
    kind: type[LocalDescriptor] | type[TcpDescriptor], data: bytes
) -> None:
    with pytest.raises(TransportUnavailable):
        kind.parse(data)


def test_a_tcp_descriptor_comes_back() -> None:
    sent = TcpDescriptor(host="fe80::1%eth0", port=7, export="0f" * 16, tls=True, region_bytes=(0, 2**62))
    assert TcpDescriptor.parse(sent.model_dump_json().encode()) == sent
