"""Streams of a CUDA device, for copies beside the stream that torch computes on."""

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch

from modelexpress.dwdp.streams import Copy, Event, Machine, Stream
from modelexpress.errors import DeviceError
from modelexpress.memory import cuda_copy
from modelexpress.memory.cuda_driver import driver
from modelexpress.memory.cuda_vmm import CudaVmm


class CudaEvent(cuda_copy.Event, Event):
    """An event of the driver."""


class CudaStream(cuda_copy.Stream, Stream):
    """A stream of the driver; many copies go to it in one call."""

    def wait(self, event: Event) -> None:
        driver().call("cuStreamWaitEvent", self.handle, _handle(event), 0)

    def record(self, event: Event) -> None:
        driver().call("cuEventRecord", _handle(event), self.handle)


class TorchStream(CudaStream):
    """A stream that torch made."""

    def __init__(self, handle: int) -> None:
        self._driver = driver()
        self.handle = ctypes.c_void_p(handle)

    def copy_all(self, copies: Sequence[Copy]) -> None:
        for copy in copies:  # one by one: the default stream takes no batches
            self.copy(*copy)

    def close(self) -> None:
        """Do nothing: it is torch's."""


class CudaMachine(Machine):
    """One CUDA device, which is the current one of every thread that uses this.

    Args:
        device: Its ordinal.
    """

    def __init__(self, device: int) -> None:
        self.vmm = CudaVmm(device)
        self._device = device
        self._streams: dict[int, TorchStream] = {}

    def compute(self) -> Stream:
        handle = torch.cuda.current_stream(self._device).cuda_stream
        # To the driver, no handle is the default stream of whatever device is current.
        if not handle and torch.cuda.current_device() != self._device:
            raise DeviceError(
                f"the model is on cuda:{self._device}, but this thread works with cuda:{torch.cuda.current_device()}: "
                f"call torch.cuda.set_device({self._device}) before the model runs"
            )
        if (known := self._streams.get(handle)) is None:
            known = self._streams[handle] = TorchStream(handle)
        return known

    def stream(self) -> Stream:
        with driver().on(self._device):
            return CudaStream()

    def event(self, *, timed: bool = False) -> Event:
        with driver().on(self._device):
            return CudaEvent(timed=timed)

    def here(self) -> AbstractContextManager[None]:
        return torch.cuda.device(self._device)

    def finish(self) -> None:
        torch.cuda.synchronize(self._device)

    def trim(self) -> None:
        torch.cuda.empty_cache()

    def seconds(self, first: Event, second: Event) -> float:
        milliseconds = ctypes.c_float()
        driver().call("cuEventElapsedTime", ctypes.byref(milliseconds), _handle(first), _handle(second))
        return milliseconds.value / 1000


def _handle(event: Event) -> ctypes.c_void_p:
    if not isinstance(event, CudaEvent):
        raise DeviceError(f"{type(event).__name__} is no event of the CUDA driver")
    return event.handle
