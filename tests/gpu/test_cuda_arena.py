"""A CudaArena takes torch's allocations into one region, gives back what nobody uses, and disturbs nothing else."""

# mypy: untyped-calls-exclude=torch

import gc
import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from modelexpress.errors import DeviceError
from modelexpress.memory import CudaArena
from modelexpress.memory.cuda_arena import TOLERATED_BYTES
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_regions import regions_under
from modelexpress.transport import LocalTransport, Run
from tests.support.children import Child, say

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MIB = 1 << 20
WAIT = 60.0
SIZES = [3 * MIB, 100, 20 * MIB, 7 * MIB + 13, 1 * MIB, 300 * MIB, 512] * 3


def build(sizes: list[int]) -> list[torch.Tensor]:
    """Return tensors of so many bytes; each byte says which tensor it is of."""
    return [torch.full((size,), number % 251, dtype=torch.uint8, device="cuda:0") for number, size in enumerate(sizes)]


def holds(tensors: list[torch.Tensor]) -> bool:
    return all(bool((tensor == number % 251).all()) for number, tensor in enumerate(tensors))


def ranges(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [(tensor.data_ptr(), tensor.nbytes) for tensor in tensors]


def within(arena: CudaArena, tensor: torch.Tensor) -> bool:
    return arena.address <= tensor.data_ptr() < arena.address + max(arena.nbytes, 1)


def free_bytes() -> int:
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info(0)[0])


def test_a_model_is_one_region_without_waste_and_as_it_was_built() -> None:
    with CudaArena(device=0) as arena:
        tensors = build(SIZES)
    assert all(within(arena, tensor) for tensor in tensors)
    (region,) = regions_under(ranges(tensors))
    assert region.device == 0
    assert arena.address <= region.address
    assert region.nbytes <= arena.nbytes
    assert arena.waste <= TOLERATED_BYTES + 2 * MIB
    assert arena.nbytes >= sum(SIZES)
    assert holds(tensors), "the last physical allocation was moved"
    del tensors
    arena.close()


def test_the_driver_tells_arenas_from_what_torch_allocates() -> None:
    with CudaArena() as arena:
        inside = build([30 * MIB])
    outside = build([30 * MIB, 40 * MIB])
    assert not driver().allocation(inside[0].data_ptr()).is_ipc_capable
    for region in regions_under(ranges(outside)):
        found = driver().allocation(region.address)
        assert found == (region.address, region.nbytes, 0, True)
    del inside
    arena.close()


def test_what_is_allocated_after_the_block_is_elsewhere() -> None:
    with CudaArena() as arena:
        inside = build([5 * MIB])
    outside = build([5 * MIB])
    assert within(arena, inside[0])
    assert not within(arena, outside[0])
    assert torch.cuda.memory_allocated() > 0
    del inside
    arena.close()


def test_other_threads_allocate_where_they_always_did() -> None:
    found: list[torch.Tensor] = []
    with CudaArena() as arena:
        thread = threading.Thread(target=lambda: found.extend(build([5 * MIB])))
        thread.start()
        thread.join()
        own = build([5 * MIB])
    assert within(arena, own[0])
    assert not within(arena, found[0])
    del own
    arena.close()


def test_memory_that_was_freed_within_the_block_is_used_again() -> None:
    with CudaArena() as arena:
        for _ in range(20):
            tensors = build([100 * MIB])
            del tensors
        kept = build([100 * MIB])
    assert arena.nbytes <= 300 * MIB
    assert holds(kept)
    del kept
    arena.close()


def test_the_block_may_run_again() -> None:
    arena = CudaArena()
    with arena:
        first = build(SIZES)
    with arena:
        second = build(SIZES)
    assert holds(first)
    assert holds(second)
    assert len(regions_under(ranges(first + second))) == 1
    assert arena.waste <= 2 * (TOLERATED_BYTES + 2 * MIB)
    del first, second
    arena.close()


def test_with_the_size_known_tensors_follow_each_other_without_gaps() -> None:
    sizes = [3 * MIB] * 100
    with CudaArena(nbytes=sum(sizes)) as arena:
        tensors = build(sizes)
    addresses = sorted(tensor.data_ptr() for tensor in tensors)
    assert addresses == list(range(addresses[0], addresses[0] + sum(sizes), 3 * MIB))
    assert arena.nbytes <= sum(sizes) + TOLERATED_BYTES + 2 * MIB
    del tensors
    arena.close()


def test_closing_gives_everything_back_when_no_tensor_is_left() -> None:
    build([MIB])
    torch.cuda.empty_cache()
    before = free_bytes()
    with CudaArena() as arena:
        tensors = build(SIZES)
        with pytest.raises(DeviceError, match="within its own block"):
            arena.close()
    arena.close()
    arena.close()
    assert not arena.closed
    assert holds(tensors), "tensors keep the memory of a closed arena"
    with pytest.raises(DeviceError, match="was closed"), arena:
        pass
    del tensors
    torch.cuda.empty_cache()
    assert arena.closed
    assert (arena.nbytes, arena.waste) == (0, 0)
    assert free_bytes() >= before - 8 * MIB


def test_closing_without_tensors_gives_everything_back_at_once() -> None:
    build([MIB])
    torch.cuda.empty_cache()
    before = free_bytes()
    with CudaArena() as arena:
        tensors = build(SIZES)
    del tensors
    arena.close()
    assert arena.closed
    assert free_bytes() >= before - 8 * MIB


def test_an_arena_that_is_forgotten_is_given_back() -> None:
    build([MIB])
    torch.cuda.empty_cache()
    before = free_bytes()
    with CudaArena() as arena:
        tensors = build(SIZES)
    del arena
    gc.collect()
    assert holds(tensors)
    del tensors
    torch.cuda.empty_cache()
    assert free_bytes() >= before - 8 * MIB


def test_running_out_of_memory_is_torchs_own_error_and_harms_nothing() -> None:
    with CudaArena() as arena:
        small = build([5 * MIB])
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 42, dtype=torch.uint8, device="cuda:0")
        with pytest.raises(torch.OutOfMemoryError):
            # More than is free and what the arena has mapped ahead.
            torch.empty(free_bytes() + (4 << 30), dtype=torch.uint8, device="cuda:0")
        more = build([5 * MIB])
    assert within(arena, more[0])
    assert holds(small)
    assert holds(more)
    del small, more
    arena.close()


def test_a_computation_in_arena_memory_is_right() -> None:
    with CudaArena() as arena:
        model = torch.nn.Linear(1024, 1024, device="cuda:0")
    given = torch.randn(64, 1024, device="cuda:0")
    expected = given.cpu() @ model.weight.cpu().T + model.bias.cpu()
    assert torch.allclose(model(given).cpu(), expected, atol=1e-3)
    assert within(arena, model.weight)
    del model
    arena.close()


@pytest.mark.parametrize("allocator", ["", "expandable_segments:True"])
def test_a_process_that_ends_with_an_arena_ends_well(allocator: str) -> None:
    code = (
        "import torch; from modelexpress.memory import CudaArena\n"
        "with CudaArena() as arena: model = torch.nn.Linear(4096, 4096, device='cuda:0')\n"
        "assert arena.nbytes and arena.address <= model.weight.data_ptr() < arena.address + arena.nbytes"
    )
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": allocator, "PYTORCH_ALLOC_CONF": allocator}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=WAIT)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_another_process_reads_an_arena() -> None:
    with CudaArena() as arena:
        tensors = [torch.empty(size, dtype=torch.uint8, device="cuda:0") for size in SIZES]
    with Child("tests.gpu.test_cuda_arena") as child, LocalTransport() as transport:
        found = child.answer()
        assert found["regions"] == 1
        with transport.open(found["descriptor"].encode(), "token", 0) as reader:
            runs = [
                Run(0, offset, tensor.data_ptr(), tensor.nbytes)
                for offset, tensor in zip(found["offsets"], tensors, strict=True)
            ]
            reader.read(runs).wait(WAIT)
    assert holds(tensors)
    del tensors
    arena.close()


def main() -> None:
    """Offer tensors in an arena until standard input ends."""
    with CudaArena():
        tensors = build(SIZES)
    regions = regions_under(ranges(tensors))
    with LocalTransport() as transport:
        export = transport.export(regions)
        export.grant("token")
        offsets = [tensor.data_ptr() - regions[0].address for tensor in tensors]
        say(json.dumps({"descriptor": export.descriptor.decode(), "offsets": offsets, "regions": len(regions)}))
        sys.stdin.read()


if __name__ == "__main__":
    main()
