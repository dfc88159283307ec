"""Which machine computes a model."""

import torch
from torch import nn

from modelexpress.dwdp.streams import Machine
from modelexpress.errors import ExpertsUnsupported
from modelexpress.memory.host_vmm import HostVmm

_LEAST_UNIT, _LARGEST_UNIT = 4 << 10, 2 << 20
_UNITS_PER_EXPERT = 4


def machine_of(model: nn.Module) -> Machine:
    """Return what a model's parameters are computed by.

    Raises:
        ExpertsUnsupported: They are on several devices, or on one that cannot share memory.
    """
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("meta")}
    if len(devices) != 1:
        raise ExpertsUnsupported(
            f"the model's parameters are on {', '.join(sorted(map(str, devices))) or 'no device'}: a rank has one"
        )
    device = devices.pop()
    if device.type == "cuda":
        from modelexpress.dwdp.cuda_machine import CudaMachine

        return CudaMachine(torch.cuda.current_device() if device.index is None else device.index)
    if device.type == "cpu":
        from modelexpress.dwdp.host_machine import HostMachine

        return HostMachine(HostVmm(_unit(model)))
    raise ExpertsUnsupported(f"the model is on {device}: experts are shared on CUDA devices and on the host")


def _unit(model: nn.Module) -> int:
    """Return the granularity for a model on the host: that of a GPU, and less where experts are small.

    Each page of a slot is an open file and a mapping, of which a process has some thousands.
    """
    rows = [parameter[0].nbytes for parameter in model.parameters() if parameter.dim() >= 3 and len(parameter)]
    wanted = max(rows, default=0) // _UNITS_PER_EXPERT
    return min(max(1 << max(wanted.bit_length() - 1, 0), _LEAST_UNIT), _LARGEST_UNIT)
