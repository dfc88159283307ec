"""`tcp` from, to and between GPUs, of processes that see one device each: bit for bit, also when things go wrong.

The source sees device 0 alone. The target is on the last device that there is: with two, the devices differ.
"""

import contextlib
import uuid
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

import modelexpress as mx
from modelexpress.errors import DeviceError, PeerLost, TransportUnavailable
from modelexpress.memory.cuda_driver import Driver
from modelexpress.transport import Run, TcpTransport, Transfer, Transport
from tests.support.device_sources import DeviceSource, device_tensors
from tests.support.read_target import BIG, MIB, PROMPT, REPEATS, Target
from tests.support.transport_source import TOKEN, TransportSource, content
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

TCP = mx.Settings(worker_grpc_port=0, chunk_bytes=1 << 20, transport="tcp")
ANY = mx.Settings(worker_grpc_port=0, chunk_bytes=1 << 20)
NUMBER = max(torch.cuda.device_count() - 1, 0)
TARGET = f"cuda:{NUMBER}"


@pytest.fixture
def identity() -> mx.SourceIdentity:
    return mx.SourceIdentity(model_name=f"test/{uuid.uuid4()}")


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return device_tensors("cpu")


@pytest.fixture
def transport() -> Iterator[Transport]:
    with TcpTransport(stall_timeout=1.0) as transport:
        yield transport


def room(expected: dict[str, torch.Tensor], place: str) -> dict[str, torch.Tensor]:
    """Return a model to be filled."""
    return {name: torch.empty_like(tensor, device=place) for name, tensor in expected.items()}


def fits(model: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(model[name].cpu(), tensor) for name, tensor in expected.items())


def device_memory(nbytes: int) -> torch.Tensor:
    memory = torch.zeros(nbytes, dtype=torch.uint8, device=TARGET)
    torch.cuda.synchronize(TARGET)
    return memory


# ---- models


@pytest.mark.parametrize(
    ("visible", "place", "allocator"),
    [
        ("0", TARGET, ""),
        ("0", "meta", "expandable_segments:True"),
        ("0", "cpu", ""),
        ("", TARGET, ""),
    ],
    ids=["device to device", "expandable segments to a meta model", "device to host", "host to device"],
)
def test_a_model_travels(
    registry: str,
    identity: mx.SourceIdentity,
    expected: dict[str, torch.Tensor],
    visible: str,
    place: str,
    allocator: str,
) -> None:
    model = room(expected, place)
    with DeviceSource(registry, identity, visible, allocator):
        report = mx.load(model, identity, registry=registry, device=TARGET, settings=TCP)
    assert report.transport == "tcp", report
    assert fits(model, expected)
    assert all(tensor.device == torch.device("cpu" if place == "cpu" else TARGET) for tensor in model.values())


def test_closing_gives_the_memory_back(
    registry: str, identity: mx.SourceIdentity, expected: dict[str, torch.Tensor]
) -> None:
    model = room(expected, TARGET)
    free = []
    with DeviceSource(registry, identity, "0"):
        for _ in range(4):
            mx.load(model, identity, registry=registry, settings=TCP)
            torch.cuda.synchronize(TARGET)
            free.append(torch.cuda.mem_get_info(TARGET)[0])
    assert free[-1] >= free[1] - (8 << 20), "the third and fourth load took no more memory than the second"


# ---- falling back


def test_a_device_that_cannot_map_the_sources_memory_takes_tcp_and_the_report_says_why(
    registry: str, identity: mx.SourceIdentity, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(driver: Driver, handle: bytes) -> int:
        raise DeviceError("cuIpcOpenMemHandle_v2: peer access is not supported between these two devices")

    monkeypatch.setattr(Driver, "open_ipc", refuse)
    model = room(expected, TARGET)
    with DeviceSource(registry, identity, "0"):
        report = mx.load(model, identity, registry=registry, settings=ANY)
    assert report.transport == "tcp", report
    assert fits(model, expected)
    notes = [note for note in report.notes if note.startswith("local: ")]
    assert len(notes) == 1, report.notes
    assert "peer access is not supported" in notes[0]


def test_memory_that_cannot_be_shared_is_offered_over_tcp(
    registry: str, identity: mx.SourceIdentity, expected: dict[str, torch.Tensor]
) -> None:
    """What cudaMallocAsync hands out has neither an IPC handle nor a file descriptor."""
    model = room(expected, TARGET)
    with DeviceSource(registry, identity, "0", "backend:cudaMallocAsync"):
        report = mx.load(model, identity, registry=registry, settings=ANY)
    assert report.transport == "tcp", report
    assert fits(model, expected)
    assert any(note.startswith("local: ") for note in report.notes), report.notes


def test_a_device_that_is_not_there_is_named(transport: Transport) -> None:
    absent = torch.cuda.device_count()
    with pytest.raises(TransportUnavailable, match=f"device {absent} cannot be used"):
        transport.open(transport.export([]).descriptor, TOKEN, absent)


# ---- bytes


def read_all(transport: Transport, descriptor: bytes, runs: Sequence[Run]) -> None:
    with transport.open(descriptor, TOKEN, NUMBER) as reader:
        transfer = reader.read(runs)
        transfer.wait(60)
        assert transfer.progress == sum(run.nbytes for run in runs)


def test_runs_of_odd_sizes_and_places(transport: Transport) -> None:
    random = np.random.default_rng(5)
    sizes = [*random.integers(1, 3000, 5000).tolist(), 9 * MIB + 5, 3 * MIB + 1]
    offsets = [int(random.integers(0, BIG - size)) for size in sizes]
    places = [0, *np.cumsum(sizes).tolist()]
    memory = device_memory(places[-1] + 3)
    rows = list(zip(offsets, places, sizes, strict=False))
    with TransportSource("device", visible="0") as source:
        export = source.export([BIG]).grant()
        begin = memory.data_ptr() + 3
        runs = [Run(0, offset, begin + place, size) for offset, place, size in rows]
        read_all(transport, export.descriptor, runs)
    data = content(0, BIG)
    assert memory.cpu().numpy().tobytes() == bytes(3) + b"".join(data[o : o + size] for o, _, size in rows)


def test_several_regions_and_readers_at_once(transport: Transport) -> None:
    sizes = [5 * MIB + 1, 7, 12 * MIB]
    with TransportSource("device", visible="0") as source:
        export = source.export(sizes).grant()
        memories = [[device_memory(size) for size in sizes] for _ in range(3)]
        with contextlib.ExitStack() as stack:
            readers = [stack.enter_context(transport.open(export.descriptor, TOKEN, NUMBER)) for _ in memories]
            transfers = [
                reader.read([Run(n, 0, part.data_ptr(), sizes[n]) for n, part in enumerate(memory)])
                for reader, memory in zip(readers, memories, strict=True)
            ]
            for transfer in transfers:
                transfer.wait(60)
                # No synchronisation here: what has landed is in place for every stream.
        for memory in memories:
            for number, part in enumerate(memory):
                assert part.cpu().numpy().tobytes() == content(number, sizes[number])


# ---- ends


@contextlib.contextmanager
def reading(transport: Transport, memory: torch.Tensor) -> Iterator[tuple[TransportSource, bytes, Transfer]]:
    """Yield a source, its descriptor, and a transfer to `memory` that is on its way and far from its end."""
    with TransportSource("device", visible="0") as source:
        export = source.export([BIG]).grant()
        with transport.open(export.descriptor, TOKEN, NUMBER) as reader:
            transfer = reader.read([Run(0, 0, memory.data_ptr(), BIG)] * REPEATS)
            wait_until(lambda: transfer.progress > 0)
            yield source, export.descriptor, transfer
            reader.close()
            memory.zero_()
            torch.cuda.synchronize(TARGET)
            host = Target(BIG)
            with contextlib.suppress(PeerLost), transport.open(export.descriptor, TOKEN) as other:
                other.read([host.run(0, 0, BIG)]).wait(PROMPT)
                assert host.bytes == content(0, BIG), "the source goes on serving others"
            assert not memory.any(), "bytes landed after the reader was closed"


def test_a_source_that_is_killed_in_the_middle_is_lost_at_once(transport: Transport) -> None:
    with reading(transport, device_memory(BIG)) as (source, descriptor, transfer):
        source.kill()
        with pytest.raises(PeerLost):
            transfer.wait(PROMPT)
        assert 0 < transfer.progress < REPEATS * BIG
        with pytest.raises(PeerLost):
            transport.open(descriptor, TOKEN, NUMBER)
    assert torch.ones(8, device=TARGET).sum() == 8, "the device goes on working"


def test_a_reader_that_is_closed_in_the_middle(transport: Transport) -> None:
    with reading(transport, device_memory(BIG)) as (_, _, transfer):
        assert not transfer.done()
    with pytest.raises(PeerLost):
        transfer.wait(PROMPT)
