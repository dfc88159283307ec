"""Where bytes on a `tcp` connection come from and go to: host memory as it is, device memory by way of staging."""

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import groupby

from modelexpress.memory import Region, memory_view
from modelexpress.transport.base import Run
from modelexpress.transport.pages import make_ready
from modelexpress.transport.staging import Stage
from modelexpress.transport.staging_driver import StagingDriver
from modelexpress.transport.stream import receive_all, send_all

Cuda = Callable[[], StagingDriver]
"""Returns the driver; called where device memory is involved, and nowhere else."""


class Outlet(ABC):
    """What one connection's thread sends from."""

    @abstractmethod
    def send(self, sock: socket.socket, head: memoryview, runs: Sequence[Run]) -> None:
        """Send `head`, then the bytes of `runs`, which are within their regions.

        Raises:
            OSError: The connection broke, or the peer took nothing for the stall deadline.
            DeviceError: The device failed; what was sent may be incomplete.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what sending took; no memory is read any more. Closing twice is allowed."""


class HostOutlet(Outlet):
    """Sends straight from regions in host memory; any number of threads may share it.

    Args:
        views: The regions.
        tls: Whether the connection is encrypted.
    """

    def __init__(self, views: Sequence[memoryview], tls: bool) -> None:
        self._views = views
        self._tls = tls

    def send(self, sock: socket.socket, head: memoryview, runs: Sequence[Run]) -> None:
        views = (self._views[run.region][run.offset : run.offset + run.nbytes] for run in runs)
        send_all(sock, [head, *views], self._tls)

    def close(self) -> None:
        """Nothing was taken."""


class StagedOutlet(Outlet):
    """Sends from regions some or all of which are device memory.

    Args:
        regions: The regions.
        tls: Whether the connection is encrypted.
        cuda: Returns the driver.
    """

    def __init__(self, regions: Sequence[Region], tls: bool, cuda: Cuda) -> None:
        self._regions = regions
        self._tls = tls
        self._cuda = cuda
        self._stages: dict[int, Stage] = {}
        self._exit = ExitStack()

    def send(self, sock: socket.socket, head: memoryview, runs: Sequence[Run]) -> None:
        send_all(sock, [head], self._tls)
        for device, group in groupby(runs, key=lambda run: self._regions[run.region].device):
            ranges = [(self._regions[run.region].address + run.offset, run.nbytes) for run in group]
            if device is None:
                send_all(sock, [memory_view(address, nbytes) for address, nbytes in ranges], self._tls)
            else:
                for block in self._stage(device).read(ranges):
                    send_all(sock, [block], self._tls)

    def close(self) -> None:
        self._exit.close()

    def _stage(self, device: int) -> Stage:
        if device not in self._stages:
            self._stages[device] = Stage(self._cuda(), device)
            self._exit.callback(self._stages[device].close)
        return self._stages[device]


class Inlet(ABC):
    """What one connection's thread receives into."""

    @abstractmethod
    def receive(self, sock: socket.socket, runs: Sequence[Run]) -> None:
        """Return when the bytes of `runs` are at their addresses.

        Raises:
            OSError: The connection broke or ended, or nothing came for the stall deadline.
            DeviceError: The device failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what receiving took; no memory is written any more. Closing twice is allowed."""


class HostInlet(Inlet):
    """Receives straight into host memory.

    Args:
        tls: Whether the connection is encrypted.
    """

    def __init__(self, tls: bool) -> None:
        self._tls = tls

    def receive(self, sock: socket.socket, runs: Sequence[Run]) -> None:
        for run in runs:
            make_ready(run.address, run.nbytes)
        receive_all(sock, [memory_view(run.address, run.nbytes) for run in runs], self._tls)

    def close(self) -> None:
        """Nothing was taken."""


class StagedInlet(Inlet):
    """Receives into device memory.

    Args:
        tls: Whether the connection is encrypted.
        cuda: The driver.
        device: Whose memory the runs go to.

    Raises:
        DeviceError: The device cannot be used, or gives no more memory.
    """

    def __init__(self, tls: bool, cuda: StagingDriver, device: int) -> None:
        self._tls = tls
        self._stage = Stage(cuda, device)

    def receive(self, sock: socket.socket, runs: Sequence[Run]) -> None:
        for block in self._stage.write([(run.address, run.nbytes) for run in runs]):
            receive_all(sock, [block], self._tls)

    def close(self) -> None:
        self._stage.close()
