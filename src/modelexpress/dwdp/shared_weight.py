"""One stacked weight that the ranks of a group share: what this rank holds, and what it reads from the others."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from modelexpress.dwdp.buffers import PeerExperts, WeightBuffer
from modelexpress.dwdp.guard import REASON
from modelexpress.dwdp.layout import WeightLayout
from modelexpress.dwdp.model import StackedTensor, WeightSpec
from modelexpress.dwdp.partition import Partition
from modelexpress.dwdp.streams import Copy, Machine
from modelexpress.dwdp.undo import Undo
from modelexpress.dwdp.views import tensor_at
from modelexpress.errors import DeviceError
from modelexpress.memory.changing import announce, withdraw
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
        self._loaded_all = self._rows == partition.num_experts
        self._device, self._dtype = weight.tensor.device, weight.tensor.dtype
        self._granularity = granularity
        self._buffer: WeightBuffer | None = None
        self._peers: dict[int, PeerExperts] = {}

    @property
    def address(self) -> int:
        """Of the full tensor's first byte."""
        assert self._buffer is not None, "a weight is moved before it is shown"
        return self._buffer.address

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
        skipped = held.start if self._loaded_all else 0
        size = self.spec.expert_bytes
        source = self._weight.tensor.data_ptr() + skipped * size
        compute = machine.compute()
        undo.add(machine.finish)  # nothing is unmapped while it is copied to, or read
        compute.copy_all([(self.address + held.start * size, source, len(held) * size)])
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
        undo.add(lambda: withdraw(self.address))
        announce(self.address, self.layout.tensor_bytes, REASON)
        undo.add(lambda: self._restore(machine))
        self._weight.bind(self.full)

    def full(self) -> torch.Tensor:
        """Return the tensor of all experts, of shape [experts, …]; those of others are right from wait to release."""
        size = self.spec.expert_bytes // self._dtype.itemsize
        shape, stride = (self.spec.num_experts, *self.spec.expert_shape), (size, *self.spec.expert_stride)
        return tensor_at(self.address, shape, stride, self._dtype, self._device)

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
        parts = self.layout.edges(start, stop) if edge else self.layout.outside(start, stop)
        peer = self._peers[owner]
        return [(self.address + part.start, peer.at(part.start), len(part)) for part in parts]

    def _restore(self, machine: Machine) -> None:
        """Give the parameter storage of its own again, with as many experts as it was loaded with."""

        def restored() -> torch.Tensor:
            fresh = self._fresh(self._rows)
            compute = machine.compute()
            compute.copy_all(self._copies_back(fresh.data_ptr()))
            compute.finish()
            return fresh

        try:
            with machine.here():
                self._weight.bind(restored)
        except BaseException:
            # What it shows now is about to go: who touched it would be killed.
            self._weight.bind(lambda: self._fresh(0))
            raise

    def _copies_back(self, address: int) -> list[Copy]:
        """Return the copies that fill storage of the parameter's own."""
        held, size = self._partition.held(self._rank), self.spec.expert_bytes
        own = self.address + held.start * size
        if not self._loaded_all:
            return [(address, own, len(held) * size)]
        others: list[Copy] = [
            (address + start * size, self._peers[owner].at(start * size), (stop - start) * size)
            for owner, start, stop in self._partition.lacked(self._rank)
        ]
        return [(address + held.start * size, own, len(held) * size), *others]

    def _fresh(self, rows: int) -> torch.Tensor:
        """Return storage for so many experts."""
        stride = (self.spec.expert_bytes // self._dtype.itemsize, *self.spec.expert_stride)
        shape = (rows, *self.spec.expert_shape)
        try:
            return torch.empty_strided(shape, stride, dtype=self._dtype, device=self._device)
        except RuntimeError as error:
            raise DeviceError(
                f"{self.spec.layer}: {self.spec.name} was given back, but there is no room for {rows} experts of "
                f"its own: it is empty now; load it again ({error})"
            ) from error

    def _layout_of(self, rank: int) -> WeightLayout:
        held = self._partition.held(rank)
        return WeightLayout(self._partition.num_experts, held, self.spec.expert_bytes, self._granularity)
