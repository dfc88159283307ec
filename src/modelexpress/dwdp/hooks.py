"""Sharing the experts of a model for the length of a block: the model runs as before, by hooks."""

# mypy: untyped-calls-exclude=torch

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.manager import DEADLINE, DwdpManager
from modelexpress.dwdp.prefetch import Observer
from modelexpress.dwdp.streams import Machine


@contextmanager
def enable(
    model: nn.Module,
    config: DwdpConfig,
    *,
    group: object = None,
    machine: Machine | None = None,
    deadline: float = DEADLINE,
    observer: Observer | None = None,
) -> Iterator[DwdpManager]:
    """Let the ranks of a group share the experts of a model while a block runs.

    Inside, the model computes what it computes with all experts, to the bit. It is for inference: gradients of
    experts are not shared. At the end every parameter has storage of its own again, with what was loaded.

    Args:
        model: Loaded with all experts, or with this rank's (rows `start_expert_id` to `end_expert_id` of each).
        config: The same on all ranks.
        group: A process group of torch.distributed or a communicator of mpi4py; None: the world.
        machine: What computes; None: that of the model's parameters.
        deadline: Seconds to wait for other ranks.
        observer: Is told what is fetched and computed.

    Raises:
        DwdpError: Experts cannot be shared; everything is as it was before.
        DeviceError: There is not enough memory; everything is as it was before.

    Example:
        >>> config = DwdpConfig.spreading(num_experts=128, dwdp_size=4)
        >>> with enable(model, config):  # doctest: +SKIP
        ...     model(tokens)
    """
    with ExitStack() as stack:
        manager = stack.enter_context(
            DwdpManager(config, group=group, machine=machine, deadline=deadline, observer=observer)
        )
        manager.add_all_layers()
        manager.setup(model)
        manager.prefetch_first_layers()
        stack.callback(_compile_anew)
        for number, layer in enumerate(manager.layers):
            wait, done = (torch.compiler.disable(partial(hook, manager, number)) for hook in (_wait, _done))
            # Of the two that may begin a layer, some models call but one: its block, or the module with its experts.
            for first in {id(module): module for module in (layer.block, *layer.users)}.values():
                stack.enter_context(first.register_forward_pre_hook(wait))
            stack.enter_context(layer.block.register_forward_hook(done))
        _compile_anew()
        yield manager


def _wait(manager: DwdpManager, number: int, *_: object) -> None:
    manager.wait(number)


def _done(manager: DwdpManager, number: int, *_: object) -> None:
    manager.record_compute_and_prefetch_next(number)


def _compile_anew() -> None:
    """Let what was compiled be compiled again: compiled code does not look whether modules have other hooks now."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
