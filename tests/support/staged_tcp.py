"""The transport `tcp` as it is between GPUs, for machines without one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modelexpress.memory import Region
from modelexpress.transport import Export, Reader, TcpTransport
from tests.support.driver_double import DriverDouble


class StagedTcp(TcpTransport):
    """Takes every region, and every destination, for memory of device 0.

    Args:
        double: Stands for the driver.
        options: Those of `TcpTransport`.
    """

    def __init__(self, double: DriverDouble | None = None, **options: Any) -> None:
        self.double = double or DriverDouble()
        super().__init__(cuda=lambda: self.double, **options)

    def export(self, regions: Sequence[Region]) -> Export:
        return super().export([replace(region, descriptor=None, device=0) for region in regions])

    def open(self, descriptor: bytes, token: str, device: int | None = None) -> Reader:
        return super().open(descriptor, token, 0)
