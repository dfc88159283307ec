"""A case that counts what a rank has of a model's experts at the worst moment of set-up."""

from torch import nn

from modelexpress.dwdp import enable
from modelexpress.dwdp.host_machine import HostMachine
from modelexpress.dwdp.layout import PAGE_UNITS
from modelexpress.memory.host_vmm import HostVmm
from modelexpress.memory.vmm import Physical
from tests.support.dwdp_life import Sharing
from tests.support.dwdp_nursery import Rank


class _Counting(HostVmm):
    """Counts, whenever memory was made, all that was made, and the storage that parameters still have of their own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters = [(parameter, parameter.data_ptr()) for parameter in model.parameters()]
        self.slots = self.most = 0
        self.own = list[int]()

    @property
    def loaded(self) -> int:
        """Bytes of parameters that are where they were."""
        return sum(parameter.nbytes for parameter, before in self._parameters if parameter.data_ptr() == before)

    def create(self, nbytes: int) -> Physical:
        if nbytes == PAGE_UNITS * self.granularity:
            self.slots += nbytes
        else:
            self.own.append(nbytes)
        self.most = max(self.most, self.slots + sum(self.own) + self.loaded)
        return super().create(nbytes)


def peak(rank: Rank, loaded: str) -> dict[str, int]:
    """Return the bytes by which set-up takes more than the model and the slots, and those of each weight made."""
    sharing = Sharing(rank, loaded=loaded, inner=500)
    vmm = _Counting(sharing.model)
    before = vmm.loaded
    with enable(sharing.model, sharing.config, machine=HostMachine(vmm)):
        sharing.check()
    return {"more": vmm.most - before - vmm.slots, "largest": max(vmm.own), "weights": len(vmm.own)}
