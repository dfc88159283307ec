"""The handover of device memory comes through whole, and whatever else arrives is refused."""

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelexpress.errors import PeerLost, TransportUnavailable
from modelexpress.memory.cuda_share import IpcShare, VmmShare
from modelexpress.transport.handover import Handover

HEAD = struct.Struct("<4sHHII")
UUID = bytes(range(16))


def shares() -> st.SearchStrategy[IpcShare | VmmShare]:
    sizes = st.lists(st.integers(1, (1 << 47) - 1), min_size=1, max_size=5).map(tuple)
    return st.one_of(st.binary(min_size=64, max_size=64).map(IpcShare), sizes.map(VmmShare))


@st.composite
def handovers(draw: st.DrawFn) -> Handover:
    devices = draw(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=4))
    found = draw(st.lists(shares(), max_size=20))
    owners = draw(st.lists(st.integers(0, len(devices) - 1), min_size=len(found), max_size=len(found)))
    return Handover(tuple(devices), tuple(found), tuple(owners))


def received(data: bytes, regions: int) -> Handover:
    """Return what a target makes of bytes that a source sends before it hangs up."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with theirs:
            theirs.sendall(data)

    thread = threading.Thread(target=send)
    thread.start()
    with ours:
        try:
            return Handover.receive(ours, regions, 5.0)
        finally:
            thread.join()


@given(handovers())
def test_a_handover_comes_through(sent: Handover) -> None:
    data = sent.encode()
    assert Handover.decode(len(sent.devices), len(sent.shares), data[HEAD.size :]) == sent


def test_thousands_of_allocations_come_over_a_socket() -> None:
    sent = Handover((UUID,), tuple(IpcShare(bytes([n % 256]) * 64) for n in range(5000)), (0,) * 5000)
    assert received(sent.encode(), 5000) == sent
    assert sent.descriptors == 0


def test_descriptors_are_counted_over_all_regions() -> None:
    assert Handover((UUID,), (VmmShare((2, 4)), IpcShare(bytes(64)), VmmShare((6,))), (0, 0, 0)).descriptors == 3


@given(st.integers(0, 3), st.integers(0, 5), st.binary(max_size=400))
def test_garbage_is_refused_or_understood_as_a_whole(devices: int, regions: int, body: bytes) -> None:
    try:
        found = Handover.decode(devices, regions, body)
    except TransportUnavailable:
        return
    assert found.encode()[HEAD.size :] == body


@given(handovers(), st.data())
def test_one_wrong_byte_is_refused_or_changes_no_shape(sent: Handover, data: st.DataObject) -> None:
    encoded = bytearray(sent.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    _, _, devices, regions, _ = HEAD.unpack_from(encoded)
    try:
        found = Handover.decode(devices, regions, bytes(encoded[HEAD.size :]))
    except TransportUnavailable:
        return
    assert len(found.shares) == len(found.owners) == regions
    assert all(owner < len(found.devices) for owner in found.owners)


@given(handovers(), st.integers(1, 40))
def test_what_is_cut_short_or_goes_on_is_refused(sent: Handover, count: int) -> None:
    body = sent.encode()[HEAD.size :]
    for changed in (body[:-count], body + bytes(count)):
        with pytest.raises(TransportUnavailable):
            Handover.decode(len(sent.devices), len(sent.shares), changed)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (b"\x03\x00" + bytes(64), "unknown kind 3"),
        (b"\x01\x01" + bytes(64), "device 1 of 1"),
        (b"\x01\x00" + bytes(63), "cut short"),
        (b"\x02\x00" + struct.pack("<I", 0), "without allocations"),
        (b"\x02\x00" + struct.pack("<I", 1 << 31), "allocations, 65536 are accepted"),
        (b"\x02\x00" + struct.pack("<IQ", 1, 0), "impossible size"),
        (b"\x02\x00" + struct.pack("<IQ", 1, 1 << 47), "impossible size"),
        (b"\x02\x00" + struct.pack("<IQ", 2, 5), "cut short"),
    ],
)
def test_each_wrong_region_has_its_reason(region: bytes, message: str) -> None:
    with pytest.raises(TransportUnavailable, match=message):
        Handover.decode(1, 1, UUID + region)


def test_more_allocations_than_a_target_accepts_are_not_sent() -> None:
    with pytest.raises(TransportUnavailable, match="65537 allocations"):
        Handover((UUID,), (VmmShare((1,) * 65537),), (0,)).encode()


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HEAD.pack(b"{jso", 1, 1, 1, 0), "not a handover"),
        (HEAD.pack(b"MXDH", 2, 1, 1, 0), "not a handover"),
        (HEAD.pack(b"MXDH", 1, 257, 1, 0), "not a handover"),
        (HEAD.pack(b"MXDH", 1, 1, 1, 1 << 31), "not a handover"),
        (HEAD.pack(b"MXDH", 1, 1, 7, 0), "1 device regions were announced, 7 handed over"),
    ],
)
def test_a_wrong_head_is_refused_before_anything_else_is_read(head: bytes, message: str) -> None:
    with pytest.raises(TransportUnavailable, match=message):
        received(head, 1)


@pytest.mark.parametrize("sent", [b"", b"MXDH", HEAD.pack(b"MXDH", 1, 1, 1, 100) + bytes(50)])
def test_a_source_that_hangs_up_is_lost(sent: bytes) -> None:
    with pytest.raises(PeerLost):
        received(sent, 1)
