"""Device memory for a model in one range of addresses, so that other processes map it in a few steps.

Needs torch with CUDA. Nothing imports this module until an arena is asked for.
"""

# mypy: untyped-calls-exclude=torch

import functools
import threading
import weakref
from contextlib import ExitStack
from types import ModuleType, TracebackType
from typing import Any, Self

import torch

from modelexpress.errors import DeviceError
from modelexpress.memory.cuda_copy import Stream
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_vmm import CudaVmm, physical_at

MIB = 1 << 20
FIRST_BYTES = 256 * MIB
MOST_BYTES = 1024 * MIB
"""Physical allocations grow from the first size to the second: few of them, and little too much for small models."""
TOLERATED_BYTES = 32 * MIB
"""What may stay unused at the end, rather than be moved."""


class CudaArena:
    """Where this thread's torch allocations on one device go while its block runs.

    Everything lies side by side in one range of addresses, in physical allocations of up to 1 GiB: a source offers
    it as one region, and a target maps 60 GB in tens of steps instead of thousands. Allocations after the block go
    where they always went. Leaving the block waits for the device; publish a model after it, not within.

    The memory lives as long as tensors use it. After `close`, or when the arena is forgotten, it is given back once
    torch holds none of it: at once, or with the `torch.cuda.empty_cache()` that follows the end of the last tensor.

    Args:
        device: Ordinal of the device, or a torch device.
        nbytes: Of the model, if known: its larger tensors then follow each other without the gaps that torch's
            segments of 20 MiB leave. Each tensor takes a multiple of 512 bytes.

    Raises:
        DeviceError: The device cannot be used, or the C extension was not built.

    Example:
        >>> with CudaArena(device=0) as arena:  # doctest: +SKIP
        ...     model = build()
        >>> publication = publish(model, identity)  # doctest: +SKIP
    """

    def __init__(self, device: int | torch.device = 0, nbytes: int = 0) -> None:
        found = torch.device("cuda", device) if isinstance(device, int) else device
        self.device = torch.cuda.current_device() if found.index is None else found.index
        self._expected = nbytes
        self._turn = threading.Lock()
        self._exit = ExitStack()
        self._vmm = CudaVmm(self.device)
        try:
            with torch.cuda.device(self.device):
                torch.cuda.init()
                self._pool: torch.cuda.MemPool | None = torch.cuda.MemPool(_allocator())
        except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
            raise DeviceError(f"torch cannot use CUDA device {self.device}: {error}") from error
        self._reserved = self._vmm.rounded(driver().total_bytes(self.device))
        self.address = self._vmm.reserve(self._reserved)
        self._name = self._open()
        self._release = weakref.finalize(self, _extension().close, self._name)
        self._release.atexit = False  # what is left then goes with the process

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the arena takes."""
        return self._state()[0]

    @property
    def used_bytes(self) -> int:
        """Bytes of those that torch holds, for tensors and between them."""
        return self._state()[2]

    @property
    def waste(self) -> int:
        """Bytes of device memory that the arena takes and torch does not hold."""
        mapped, _, live, _ = self._state()
        return mapped - live

    @property
    def closed(self) -> bool:
        """Whether all its memory was given back."""
        return not self._state()[0] and not self._release.alive

    def close(self) -> None:
        """Give the memory back once no tensor uses it; see the class. Closing twice is allowed.

        Raises:
            DeviceError: The arena's block has not ended.
        """
        if not self._turn.acquire(blocking=False):
            raise DeviceError("an arena cannot be closed within its own block")
        with ExitStack() as done:
            done.callback(self._turn.release)
            self._pool = None  # torch gives back what no tensor uses
            self._release()
            if self.used_bytes:
                torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        if self._pool is None:
            raise DeviceError("the arena was closed: make a new one")
        if not self._turn.acquire(blocking=False):
            raise DeviceError("the arena's block runs already: one thread at a time can fill it")
        with ExitStack() as undo:
            undo.callback(self._turn.release)
            undo.callback(self._trim, len(_extension().parts(self._name)))
            _extension().enter(self._name)
            undo.callback(_extension().leave)
            undo.enter_context(torch.cuda.use_mem_pool(self._pool, device=self.device))
            if self._expected:
                # One segment for everything: torch keeps it when this tensor has gone, and cuts it up.
                torch.empty(self._expected, dtype=torch.uint8, device=torch.device("cuda", self.device))
                self._expected = 0
            self._exit = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()

    def _open(self) -> int:
        try:
            name: int = _extension().open(
                self.address,
                self._reserved,
                self.device,
                driver().context(self.device).value or 0,
                self._vmm.granularity,
                FIRST_BYTES,
                MOST_BYTES,
                *self._vmm.structures,
            )
            return name
        except (OSError, ValueError) as error:
            self._vmm.free(self.address, self._reserved)
            raise DeviceError(f"no arena can be made: {error}") from error

    def _state(self) -> tuple[int, int, int, int]:
        try:
            mapped, used, live, status = _extension().state(self._name)
            return mapped, used, live, status
        except ValueError:
            return 0, 0, 0, 0  # given back

    def _trim(self, kept: int) -> None:
        """Give back what no segment of torch's reaches into; the first `kept` physical allocations stay as they are."""
        torch.cuda.synchronize(self.device)
        mapped, used, _, _ = self._state()
        parts = _extension().parts(self._name)
        while len(parts) > kept and mapped - parts[-1] >= used:
            nbytes = parts.pop()
            mapped -= nbytes
            self._vmm.unmap(self.address + mapped, nbytes)
            _extension().shrink(self._name, 0)
        if len(parts) > kept and mapped - used > TOLERATED_BYTES:
            start = mapped - parts[-1]
            nbytes = self._vmm.rounded(used - start)
            if self._move(self.address + start, parts[-1], nbytes):
                _extension().shrink(self._name, nbytes)

    def _move(self, address: int, nbytes: int, kept: int) -> bool:
        """Put the first `kept` bytes of a physical allocation into one of that size, at the same address.

        Returns:
            False where there is no memory for both at once: everything is as before then.
        """
        vmm = self._vmm
        with ExitStack() as undo:
            try:
                fresh = vmm.create(kept)
                undo.callback(vmm.release, fresh)
                aside = vmm.reserve(kept)
                undo.callback(vmm.free, aside, kept)
                vmm.map(aside, kept, fresh)
                undo.callback(vmm.unmap, aside, kept)
                vmm.allow(aside, kept)
                self._copy(aside, address, kept)
                old = physical_at(address)
                undo.callback(vmm.release, old)
            except DeviceError:
                return False
            vmm.unmap(address, nbytes)
            try:
                vmm.map(address, kept, fresh)
                vmm.allow(address, kept)
            except DeviceError:
                vmm.map(address, nbytes, old)
                vmm.allow(address, nbytes)
                return False
        return True

    def _copy(self, destination: int, source: int, nbytes: int) -> None:
        with driver().on(self.device):
            stream = Stream()
            try:
                stream.copy(destination, source, nbytes)
                stream.finish()
            finally:
                stream.close()


def _extension() -> ModuleType:
    try:
        from modelexpress.memory import _arena
    except ImportError as error:
        raise DeviceError(
            "the C extension of CUDA arenas was not built: install a C compiler, then reinstall"
        ) from error
    return _arena


@functools.cache
def _allocator() -> Any:
    """Return the allocator of every arena; it stays until the process ends, because torch may free by it until then."""
    path = _extension().__file__
    assert path is not None, "an extension is a file"
    return torch.cuda.memory.CUDAPluggableAllocator(path, "mx_arena_malloc", "mx_arena_free").allocator()
