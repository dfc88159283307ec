"""The transport `tcp` of a source whose regions are in GPU memory, for machines that have a GPU."""

from collections.abc import Sequence

import torch

from modelexpress.memory import Region
from modelexpress.transport import Export, TcpTransport


class DeviceTcp(TcpTransport):
    """Exports copies of its regions in the memory of the first device that the process sees."""

    def export(self, regions: Sequence[Region]) -> Export:
        copies = [torch.empty(region.nbytes, dtype=torch.uint8, device="cuda:0") for region in regions]
        for region, copy in zip(regions, copies, strict=True):
            copy.copy_(torch.frombuffer(region.view(), dtype=torch.uint8))
        torch.cuda.synchronize()
        self._copies = copies  # they live as long as the transport, or until the next export
        return super().export([Region(copy.data_ptr(), copy.numel(), device=0) for copy in copies])
