"""One stacked weight that the ranks of a group share: what this rank holds, and what it reads from the others."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import nn

from modelexpress.dwdp.buffers import PeerExperts, WeightBuffer
from modelexpress.dwdp.layout import WeightLayout
from modelexpress.dwdp.model import StackedTensor, WeightSpec
from modelexpress.dwdp.partition import Partition
from modelexpress.dwdp.streams import Copy, Machine
from modelexpress.dwdp.undo import Undo
from modelexpress.dwdp.views import tensor_at
from modelexpress.errors import DeviceError
from modelexpress.memory.vmm import Physical


class SharedWeight:
    """A weight on its way into shared memory, and back.

    Args:
        weight: The parameter as it was loaded, with this rank's experts or with all of them.
        spec: Its description.
        partition: Who holds which experts.
        rank: This rank.
        granularity: Of the memory.
    """

    def __init__(
        self, weight: StackedTensor, spec: WeightSpec, partition: Partition, rank: int, granularity: int
    ) -> None:
        self.spec = spec
        self._weight = weight
        self._partition = partition
        self._rank = rank
        self._rows = weight.tensor.shape[0]
        self._device = weight.tensor.device
        self._granularity = granularity
        self._buffer: WeightBuffer | None = None
        self._peers: dict[int, PeerExperts] = {}
        self._bound = False
        self._shown: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def module(self) -> nn.Module:
        """The one that the weight came from."""
        return self._weight.module

    @cached_property
    def layout(self) -> WeightLayout:
        """Where its bytes lie on this rank."""
        return self._layout_of(self._rank)

    def move(self, machine: Machine, pages: Sequence[Physical], undo: Undo) -> int:
        """Copy this rank's experts into memory that peers can map, and return a descriptor of it; the caller closes it.

        Raises:
            DeviceError: There is no memory.
        """
        self._buffer = WeightBuffer(machine.vmm, self.layout, pages)
        undo.add(self._buffer.close)
        held = self._partition.held(self._rank)
        skipped = held.start if self._rows == self._partition.num_experts else 0
        size = self.spec.expert_bytes
        source = self._weight.tensor.data_ptr() + skipped * size
        compute = machine.compute()
        undo.add(compute.finish)  # nothing is unmapped while it is copied to
        compute.copy_all([(self._buffer.address + held.start * size, source, len(held) * size)])
        return self._buffer.export()

    def meet(self, machine: Machine, descriptors: Mapping[int, int], undo: Undo) -> None:
        """Map what each peer exported, and let the parameter show the full tensor: its own storage is free then.

        Args:
            machine: Has done the copies of `move`.
            descriptors: Of each peer's memory; they are closed.
            undo: Gets the steps back.

        Raises:
            DeviceError: The driver refused.
        """
        waiting = list(descriptors.items())
        try:
            while waiting:
                peer, descriptor = waiting.pop()
                self._peers[peer] = PeerExperts(machine.vmm, self._layout_of(peer), descriptor)
                undo.add(self._peers[peer].close)
        finally:
            for _, descriptor in waiting:
                os.close(descriptor)
        undo.add(lambda: self._restore(machine))
        self._bound = True
        self._weight.bind(self.full)

    @cached_property
    def full(self) -> torch.Tensor:
        """The tensor of all experts, of shape [experts, …]; those of others are right only between wait and release."""
        assert self._buffer is not None, "a weight is moved before it is shown"
        return tensor_at(
            self._buffer.address,
            (self.spec.num_experts, *self.spec.expert_shape),
            (self.spec.expert_bytes // self._weight.tensor.element_size(), *self.spec.expert_stride),
            self._weight.tensor.dtype,
            self._device,
        )

    def show(self, module: nn.Module) -> None:
        """Let a module's parameter of this weight's name show the full tensor, until all is given back.

        Args:
            module: Often the one the weight came from, which does already; or another that computes with it.
        """
        tensor = getattr(module, self._weight.attribute, None)
        if isinstance(tensor, torch.Tensor) and tensor.data_ptr() != self.full.data_ptr():
            self._shown.append((tensor, tensor.data))
            tensor.data = self.full

    def edges(self) -> list[Copy]:
        """Return the copies that complete the first and last unit of own memory: once is enough."""
        return [copy for lacked in self._partition.lacked(self._rank) for copy in self._copies(*lacked, edge=True)]

    def fetches(self, owner: int) -> list[Copy]:
        """Return the copies that fetch what this rank lacks and `owner` holds."""
        return [
            copy
            for lacked in self._partition.lacked(self._rank)
            if lacked.owner == owner
            for copy in self._copies(*lacked)
        ]

    def _copies(self, owner: int, start: int, stop: int, *, edge: bool = False) -> list[Copy]:
        assert self._buffer is not None, "a weight is moved before it is copied"
        parts = self.layout.edges(start, stop) if edge else self.layout.outside(start, stop)
        address, peer = self._buffer.address, self._peers[owner]
        return [(address + part.start, peer.at(part.start), len(part)) for part in parts]

    def _restore(self, machine: Machine) -> None:
        """Give the parameter storage of its own again, with as many experts as it was loaded with."""
        if not self._bound:
            return
        assert self._buffer is not None, "what is bound was moved"
        fresh = self._fresh()
        held, size = self._partition.held(self._rank), self.spec.expert_bytes
        skipped = 0 if self._rows == self._partition.num_experts else held.start
        target = fresh.data_ptr() - skipped * size
        copies: list[Copy] = [(target + held.start * size, self._buffer.address + held.start * size, len(held) * size)]
        if not skipped and self._rows == self._partition.num_experts:
            for owner, start, stop in self._partition.lacked(self._rank):
                copies.append((target + start * size, self._peers[owner].at(start * size), (stop - start) * size))
        compute = machine.compute()
        compute.copy_all(copies)
        compute.finish()
        self._let_go(fresh)

    def _fresh(self) -> torch.Tensor:
        """Return storage for the parameter, of as many experts as it was loaded with."""
        stride = (self.full.stride(0), *self.spec.expert_stride)
        try:
            return torch.empty_strided(
                (self._rows, *self.spec.expert_shape), stride, dtype=self.full.dtype, device=self._device
            )
        except RuntimeError as error:
            # What it shows now is about to go: who touched it would be killed.
            self._let_go(self.full.new_empty((0, *self.spec.expert_shape)))
            raise DeviceError(
                f"{self.spec.layer}: {self.spec.name} was given back, but there is no room for {self._rows} experts of "
                f"its own: it is empty now; load it again ({error})"
            ) from error

    def _let_go(self, tensor: torch.Tensor) -> None:
        """Let the parameter show another tensor than that of all experts."""
        self._weight.bind(tensor)
        self._bound = False
        while self._shown:
            shown, before = self._shown.pop()
            shown.data = before

    def _layout_of(self, rank: int) -> WeightLayout:
        held = self._partition.held(rank)
        return WeightLayout(self._partition.num_experts, held, self.spec.expert_bytes, self._granularity)
