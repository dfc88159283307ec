"""`tcp` with device memory at one end or at both, and with devices that fail; the driver is a double."""

import contextlib
import logging

import pytest

from modelexpress.errors import DeviceError, PeerLost, TransportUnavailable
from modelexpress.memory import Region
from modelexpress.transport import Run, TcpTransport
from tests.support.driver_double import DriverDouble
from tests.support.read_target import MIB, PROMPT, Target
from tests.support.transport_source import TOKEN, content
from tests.support.waiting import wait_until

SIZES = [3 * MIB + 1, 70, 5 * MIB, 9]
DEVICES = [0, None, 1, 0]


def memory() -> list[Target]:
    """Return memory of `SIZES` bytes, filled with `content`."""
    found = [Target(nbytes) for nbytes in SIZES]
    for number, target in enumerate(found):
        target.bytes[:] = content(number, len(target.bytes))
    return found


def regions(of: list[Target], devices: list[int | None]) -> list[Region]:
    rows = zip(of, devices, strict=True)
    return [Region(target.address, len(target.bytes), device=device) for target, device in rows]


@pytest.mark.parametrize("theirs", [DEVICES, [None] * 4, [0] * 4], ids=["mixed", "host", "device"])
@pytest.mark.parametrize("ours", [None, 1], ids=["to the host", "to a device"])
def test_bytes_arrive_from_and_in_any_memory(theirs: list[int | None], ours: int | None) -> None:
    double, source = DriverDouble(devices=2), memory()
    target = Target(sum(SIZES))
    with TcpTransport(cuda=lambda: double) as transport:
        export = transport.export(regions(source, theirs))
        export.grant(TOKEN)
        places = [sum(SIZES[:number]) for number in range(len(SIZES))]
        order = [3, 0, 1, 2]
        with transport.open(export.descriptor, TOKEN, ours) as reader:
            transfer = reader.read([target.run(n, 0, SIZES[n], at=places[n]) for n in order])
            transfer.wait(PROMPT)
            assert target.bytes == b"".join(bytes(each.bytes) for each in source)
    assert not double.streams
    assert not double.buffers


def test_host_memory_needs_no_driver() -> None:
    def none() -> DriverDouble:
        raise AssertionError("the driver was asked for")

    (source, *_), target = memory(), Target(SIZES[0])
    with TcpTransport(cuda=none) as transport:
        export = transport.export(regions([source], [None]))
        export.grant(TOKEN)
        with transport.open(export.descriptor, TOKEN) as reader:
            reader.read([target.run(0, 0, SIZES[0])]).wait(PROMPT)
    assert target.bytes == source.bytes


def test_a_source_whose_device_fails_is_lost_and_says_why_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    (source, *_), target = memory(), Target(SIZES[0])
    with TcpTransport(cuda=lambda: DriverDouble(copies=1)) as transport:
        export = transport.export(regions([source], [0]))
        export.grant(TOKEN)
        with caplog.at_level(logging.ERROR), transport.open(export.descriptor, TOKEN) as reader:
            with pytest.raises(PeerLost):
                reader.read([target.run(0, 0, SIZES[0])]).wait(PROMPT)
            wait_until(lambda: "illegal memory access" in caplog.text)


def test_a_target_whose_device_fails_says_so() -> None:
    double = DriverDouble(copies=1)
    (source, *_), target = memory(), Target(SIZES[0])
    with TcpTransport() as theirs, TcpTransport(cuda=lambda: double) as ours:
        export = theirs.export(regions([source], [None]))
        export.grant(TOKEN)
        with ours.open(export.descriptor, TOKEN, 0) as reader:
            transfer = reader.read([target.run(0, 0, SIZES[0])])
            with pytest.raises(DeviceError, match="illegal memory access"):
                transfer.wait(PROMPT)
        assert not double.buffers
        assert transfer.progress == 0


@pytest.mark.parametrize("number", [-1, 3])
def test_a_device_that_is_not_there_makes_tcp_unavailable(number: int) -> None:
    target = Target(8)
    with TcpTransport(cuda=DriverDouble) as transport:
        with pytest.raises(TransportUnavailable, match=f"device {number} cannot be used"):
            transport.export([Region(target.address, 8, device=number)])
        export = transport.export([Region(target.address, 8)])
        with pytest.raises(TransportUnavailable, match=f"device {number} cannot be used"):
            transport.open(export.descriptor, TOKEN, number)


def test_closing_in_the_middle_waits_for_what_the_device_still_copies() -> None:
    double = DriverDouble()
    source, target = Target(64 * MIB), Target(64 * MIB)
    source.bytes[:] = b"x" * len(source.bytes)
    with TcpTransport(cuda=lambda: double) as transport:
        export = transport.export([Region(source.address, len(source.bytes), device=0)])
        export.grant(TOKEN)
        reader = transport.open(export.descriptor, TOKEN, 0)
        transfer = reader.read([Run(0, 0, target.address, len(target.bytes))] * 50)
        wait_until(lambda: transfer.progress > 0)
        reader.close()
        landed = transfer.progress
        target.bytes[:] = bytes(len(target.bytes))
        export.close()
        assert not double.streams
        with contextlib.suppress(PeerLost):
            transfer.wait(PROMPT)
    assert transfer.progress == landed
    assert not any(target.bytes), "bytes landed after the reader was closed"
