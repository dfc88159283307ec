"""Hostile bytes against the ports of the transports: honest readers are served on, and nothing grows."""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modelexpress.transport import Run
from modelexpress.transport.greeting import Greeting
from modelexpress.transport.server import MAX_CONNECTIONS, MAX_STRANGERS
from modelexpress.transport.tcp_protocol import encode_request
from tests.support.read_target import MIB, Target
from tests.support.transport_source import TOKEN, Exported, TransportSource, content, make
from tests.support.waiting import wait_until

GROWTH = 48 * MIB
"""What the allocators of a process may keep after a storm."""

IDLE_THREADS = 2
"""The main thread of the source and the one that accepts."""


@pytest.fixture(scope="module", params=["local", "tcp"])
def exported(request: pytest.FixtureRequest) -> Iterator[Exported]:
    with TransportSource(request.param) as source:
        yield source.export([MIB]).grant()


def name_of(exported: Exported) -> str:
    return "local" if b'"path"' in exported.descriptor else "tcp"


def connect(exported: Exported) -> socket.socket:
    """Return a connection to the port, as anybody can open one."""
    fields = json.loads(exported.descriptor)
    if "path" in fields:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(fields["path"])
        sock.settimeout(5)
        return sock
    return socket.create_connection((fields["host"], fields["port"]), timeout=5)


def say(exported: Exported, data: bytes) -> None:
    """Say something, listen to the answer for a moment, and hang up."""
    with connect(exported) as sock, contextlib.suppress(OSError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(4096)


def greeting(exported: Exported, token: str = TOKEN) -> bytes:
    return Greeting(bytes.fromhex(json.loads(exported.descriptor)["export"]), token.encode()).encode()


def assert_serves(exported: Exported) -> None:
    """An honest reader gets its bytes."""
    target = Target(MIB)
    with make(name_of(exported)) as transport, transport.open(exported.descriptor, TOKEN) as reader:
        reader.read([target.run(0, 0, MIB)]).wait(10)
    assert bytes(target.bytes) == content(0, MIB)


@contextlib.contextmanager
def nothing_grows(exported: Exported) -> Iterator[None]:
    assert_serves(exported)
    wait_until(lambda: exported.source.usage().threads <= IDLE_THREADS)
    before = exported.source.usage()
    yield
    assert_serves(exported)
    wait_until(lambda: exported.source.usage().threads <= before.threads)
    wait_until(lambda: exported.source.usage().descriptors <= before.descriptors)
    assert exported.source.usage().resident < before.resident + GROWTH


def storm(exported: Exported, hostile: st.SearchStrategy[bytes], examples: int) -> None:
    @hypothesis_settings(max_examples=examples, deadline=None)
    @given(hostile)
    def hit(data: bytes) -> None:
        say(exported, data)

    with nothing_grows(exported):
        hit()


def test_random_bytes(exported: Exported) -> None:
    storm(exported, st.binary(max_size=2000), 150)


def test_damaged_greetings(exported: Exported) -> None:
    right = greeting(exported)
    cut = st.integers(0, len(right) - 1).map(lambda end: right[:end])
    changed = st.tuples(st.integers(0, len(right) - 1), st.integers(0, 255)).map(
        lambda change: right[: change[0]] + bytes([change[1]]) + right[change[0] + 1 :]
    )
    storm(exported, st.one_of(cut, changed), 150)


def test_hostile_bytes_of_a_reader_that_was_let_in(exported: Exported) -> None:
    rows = st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 3), min_size=1, max_size=20)
    requests = rows.map(lambda many: encode_request([Run(region, at, 0, size) for region, at, size in many]))
    counts = st.integers(0, 2**32 - 1).map(lambda count: struct.pack("<I", count) * 20)
    hostile = st.lists(st.one_of(st.binary(max_size=500), requests, counts), max_size=5).map(b"".join)
    storm(exported, hostile.map(lambda data: greeting(exported) + data), 150)


def test_strangers_that_connect_and_say_nothing(exported: Exported) -> None:
    with nothing_grows(exported), contextlib.ExitStack() as held:
        for _ in range(4 * MAX_STRANGERS):
            held.enter_context(connect(exported))
        assert_serves(exported)
        wait_until(lambda: exported.source.usage().threads <= MAX_STRANGERS + 8)


def test_strangers_that_speak_one_byte_at_a_time(exported: Exported) -> None:
    right = greeting(exported)

    def drip(sockets: list[socket.socket], byte: bytes) -> None:
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.sendall(byte)

    with nothing_grows(exported), contextlib.ExitStack() as held:
        slow = [held.enter_context(connect(exported)) for _ in range(MAX_STRANGERS + 10)]
        for position in range(len(right) - 1):
            drip(slow, right[position : position + 1])
        assert_serves(exported)
        # Those that were not dropped for others are dropped at their deadline.
        wait_until(lambda: exported.source.usage().threads <= IDLE_THREADS)


def test_connections_are_bounded_even_with_a_token(exported: Exported) -> None:
    with nothing_grows(exported), contextlib.ExitStack() as held:
        for _ in range(MAX_CONNECTIONS + 50):
            with contextlib.suppress(OSError):
                held.enter_context(connect(exported)).sendall(greeting(exported))
        assert exported.source.usage().threads <= MAX_CONNECTIONS + 8


def test_a_reader_that_takes_nothing_is_dropped(exported: Exported) -> None:
    if name_of(exported) == "local":
        pytest.skip("a local reader is handed descriptors, and takes the bytes by itself")
    with nothing_grows(exported), connect(exported) as sock:
        sock.sendall(greeting(exported))
        request = encode_request([Run(0, 0, 0, MIB)] * 8)
        for _ in range(20):
            sock.sendall(request)
        wait_until(lambda: exported.source.usage().threads <= IDLE_THREADS)
