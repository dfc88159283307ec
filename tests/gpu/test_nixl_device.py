"""`nixl` between GPUs, and between GPUs and hosts: bit for bit, also when sources die, withdraw or start anew."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest
import torch

from modelexpress.errors import AccessDenied, PeerLost, RegionWithdrawn, TransportError, TransportUnavailable
from modelexpress.transport import NixlTransport, Reader, Run, Transfer
from modelexpress.transport.nixl_library import missing
from tests.support.nixl_device_processes import STALL_SECONDS, NixlDeviceSource, NixlDeviceTarget, content
from tests.support.transport_source import TOKEN
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

MIB = 1 << 20
SIZES = [5, 3 * MIB + 1, 20 * MIB + 7, 64, 300 * MIB]
BIG = 1 << 30
REPEATS = 2000
"""Reading the big region so often takes five seconds: long enough to be met in the middle."""
PROMPT = STALL_SECONDS + 8.0
"""Seconds within which an end must be noticed, on a machine that is busy."""
DEVICE = 1


@pytest.fixture
def source() -> Iterator[NixlDeviceSource]:
    with NixlDeviceSource("0") as source:
        yield source


@pytest.fixture
def transport() -> Iterator[NixlTransport]:
    with NixlTransport(without_cards=True, stall_timeout=STALL_SECONDS) as transport:
        yield transport


def room(sizes: Sequence[int], place: str = f"cuda:{DEVICE}") -> list[torch.Tensor]:
    tensors = [torch.zeros(size, dtype=torch.uint8, device=place) for size in sizes]
    torch.cuda.synchronize(DEVICE)
    return tensors


def runs(places: Sequence[tuple[int, int]], tensors: Sequence[torch.Tensor]) -> list[Run]:
    return [
        Run(region, offset, tensor.data_ptr(), tensor.nbytes)
        for (region, offset), tensor in zip(places, tensors, strict=True)
    ]


def equal(tensors: Sequence[torch.Tensor], generation: int = 0) -> bool:
    return all(torch.equal(t.cpu(), content(n, t.nbytes, generation)) for n, t in enumerate(tensors))


def long_read(reader: Reader, place: tuple[int, int], tensor: torch.Tensor) -> Transfer:
    transfer = reader.read(runs([place], [tensor]) * REPEATS)
    wait_until(lambda: transfer.progress > 0)
    return transfer


def until_over(transfer: Transfer) -> float:
    started = time.monotonic()
    with suppress(TransportError):
        transfer.wait(60)
    return time.monotonic() - started


def works() -> bool:
    """Return whether the device goes on working."""
    return bool(torch.ones(8, device=f"cuda:{DEVICE}").sum() == 8)


def test_processes_that_see_one_gpu_each_and_what_the_source_gets_back(source: NixlDeviceSource) -> None:
    before = source.ask("free_bytes")
    descriptor, places = source.export(SIZES)
    with NixlDeviceTarget("1", descriptor, places, SIZES) as target:
        assert target.result() == "equal"
    source.ask("close")
    assert source.ask("free_bytes") >= before - 64 * MIB, "the memory is free again when the target has ended"


def test_parts_of_regions_and_reads_that_overlap(source: NixlDeviceSource, transport: NixlTransport) -> None:
    descriptor, places = source.export(SIZES)
    (first,) = room([40 * MIB])
    whole = room(SIZES)
    (region, offset) = places[2]
    with transport.open(descriptor, TOKEN, DEVICE) as reader:
        pieces = [Run(region, offset + n * 997, first.data_ptr() + n * 1009, 501) for n in range(5000)]
        transfers = [reader.read(pieces), reader.read(runs(places, whole)), reader.read([])]
        for transfer in transfers:
            transfer.wait(30)
    assert transfers[0].progress == 5000 * 501
    assert equal(whole)
    expected, got = content(2, SIZES[2]), first.cpu()
    assert all(torch.equal(got[n * 1009 : n * 1009 + 501], expected[n * 997 : n * 997 + 501]) for n in range(5000))


@pytest.mark.parametrize(("visible", "place"), [("", f"cuda:{DEVICE}"), ("0", "cpu")])
def test_between_a_host_and_a_gpu_it_arrives_or_the_reason_is_said(
    transport: NixlTransport, visible: str, place: str
) -> None:
    tensors = room(SIZES, place)
    with NixlDeviceSource(visible) as source:
        descriptor, places = source.export(SIZES)
        try:
            reader = transport.open(descriptor, TOKEN, None if place == "cpu" else DEVICE)
        except TransportUnavailable as error:
            assert "NIXL finds no way" in str(error)  # noqa: PT017 - either outcome is right
            return
        with reader:
            reader.read(runs(places, tensors)).wait(30)
    assert equal(tensors)


def test_expandable_segments_arrive_or_the_reason_is_said(transport: NixlTransport) -> None:
    tensors = room(SIZES)
    with NixlDeviceSource("0", "expandable_segments:True") as source:
        descriptor, places = source.export(SIZES)
        try:
            reader = transport.open(descriptor, TOKEN, DEVICE)
        except TransportUnavailable as error:
            assert "expandable segments" in str(error)  # noqa: PT017 - either outcome is right
            return
        with reader:
            reader.read(runs(places, tensors)).wait(30)
    assert equal(tensors)


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_a_source_that_dies_or_freezes_in_the_middle(
    source: NixlDeviceSource, transport: NixlTransport, how: str
) -> None:
    descriptor, places = source.export([BIG])
    (tensor,) = room([BIG])
    with transport.open(descriptor, TOKEN, DEVICE) as reader:
        transfer = long_read(reader, places[0], tensor)
        if how == "kill":
            source.kill()
        else:
            source.process.send_signal(signal.SIGSTOP)
        assert until_over(transfer) < PROMPT
    if transfer.progress == REPEATS * BIG:
        assert equal([tensor])
    assert works()
    if how == "kill":
        with pytest.raises((PeerLost, TransportUnavailable)):
            transport.open(descriptor, TOKEN, DEVICE)


def test_nothing_lands_after_close(source: NixlDeviceSource, transport: NixlTransport) -> None:
    descriptor, places = source.export([BIG])
    (tensor,) = room([BIG])
    reader = transport.open(descriptor, TOKEN, DEVICE)
    transfer = long_read(reader, places[0], tensor)
    started = time.monotonic()
    reader.close()
    assert time.monotonic() - started < PROMPT
    tensor.zero_()
    with pytest.raises(PeerLost):
        transfer.wait(PROMPT)
    torch.cuda.synchronize(DEVICE)
    assert not tensor.any()


def test_a_revoked_token_ends_its_reads(source: NixlDeviceSource, transport: NixlTransport) -> None:
    descriptor, places = source.export([BIG])
    (tensor,) = room([BIG])
    with transport.open(descriptor, TOKEN, DEVICE) as reader:
        transfer = long_read(reader, places[0], tensor)
        source.ask("revoke")
        with pytest.raises(AccessDenied):
            transfer.wait(PROMPT)
    with pytest.raises(AccessDenied):
        transport.open(descriptor, TOKEN, DEVICE)


def test_what_was_withdrawn_and_allocated_again_is_read_as_it_is_then(
    source: NixlDeviceSource, transport: NixlTransport
) -> None:
    tensors = room(SIZES)
    for generation in range(3):
        descriptor, places = source.export(SIZES, generation)
        with transport.open(descriptor, TOKEN, DEVICE) as reader:
            reader.read(runs(places, tensors)).wait(30)
            assert equal(tensors, generation)
            source.ask("close")
            with pytest.raises(RegionWithdrawn):
                reader.read(runs(places, tensors)).wait(PROMPT)
        with pytest.raises(RegionWithdrawn):
            transport.open(descriptor, TOKEN, DEVICE)


def test_a_destination_on_another_gpu_is_refused(source: NixlDeviceSource, transport: NixlTransport) -> None:
    descriptor, places = source.export([64])
    (elsewhere,) = room([64], "cuda:0")
    with transport.open(descriptor, TOKEN, DEVICE) as reader, pytest.raises(TransportUnavailable, match="GPU 0"):
        reader.read(runs(places, [elsewhere])).wait(PROMPT)


def test_reading_again_takes_no_more_memory(source: NixlDeviceSource, transport: NixlTransport) -> None:
    descriptor, places = source.export(SIZES)
    tensors = room(SIZES)
    free = []
    for _ in range(4):
        with transport.open(descriptor, TOKEN, DEVICE) as reader:
            reader.read(runs(places, tensors)).wait(30)
        torch.cuda.synchronize(DEVICE)
        free.append(torch.cuda.mem_get_info(DEVICE)[0])
    assert free[-1] >= free[1] - 8 * MIB
    assert equal(tensors)
