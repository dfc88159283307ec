"""One rank's part in a group that shares experts: set up, used once for each layer, and given back."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import ClassVar, NamedTuple, Self

from torch import nn

from modelexpress.dwdp.agreement import agree
from modelexpress.dwdp.config import DwdpConfig
from modelexpress.dwdp.find import check_model, find_layer, find_layers, numbered_layer
from modelexpress.dwdp.guard import Guard, holders
from modelexpress.dwdp.interrupts import held_back
from modelexpress.dwdp.links import Links, telling_of_files
from modelexpress.dwdp.machines import machine_of
from modelexpress.dwdp.model import ExpertLayer
from modelexpress.dwdp.own_modules import OwnModules
from modelexpress.dwdp.prefetch import Observer, Prefetcher
from modelexpress.dwdp.ranks import join
from modelexpress.dwdp.setup import share
from modelexpress.dwdp.streams import Machine
from modelexpress.dwdp.undo import Undo
from modelexpress.errors import DwdpError, ExpertsUnsupported

DEADLINE = 60.0
"""Seconds that ranks wait for each other while they set up."""


class DwdpManager:
    """Shares the experts of a model among the ranks of a group. For engines; scripts use `enable`.

        with DwdpManager(config, group=group) as manager:
            manager.add_layer(0)                        # of each layer with experts, in order of use
            manager.setup(model)
            manager.prefetch_first_layers()             # at the start of a forward
            manager.wait_and_bind(experts, 0)           # before the layer's experts, once
            manager.record_compute_and_prefetch_next(0) # when their kernels are enqueued

    A process can be within one such block only. What its end gives back includes everything that was set up.

    Args:
        config: The same on all ranks.
        group: A process group of torch.distributed or a communicator of mpi4py, cut into groups of `dwdp_size`; None:
            the world.
        machine: What computes; None: that of the model's parameters.
        deadline: Seconds to wait for other ranks.
        observer: Is told what is fetched and computed.

    Raises:
        DwdpError: This process is within such a block.
        PartitionInvalid: There are too few ranks, or this one is in no group.
        RankLost: The other ranks did not come.
    """

    _entered: ClassVar["DwdpManager | None"] = None
    _turn: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self,
        config: DwdpConfig,
        *,
        group: object = None,
        machine: Machine | None = None,
        deadline: float = DEADLINE,
        observer: Observer | None = None,
    ) -> None:
        self._check_alone()  # before others are waited for
        self.config = config
        self._machine, self._deadline, self._observer = machine, deadline, observer
        self._added: dict[int, nn.Module | None] = {}
        self._adds_all = False
        self._positions: dict[int, int] = {}
        self.layers: Sequence[ExpertLayer] = ()
        self._undo = Undo()
        self._running: _Running | None = None
        self._failed = False
        self._ranks = join(config, group, deadline)

    @property
    def start_expert_id(self) -> int:
        """First expert that this rank stores: what an engine loads begins here."""
        return self._ranks.rank * self.config.num_prefetch_experts

    @property
    def end_expert_id(self) -> int:
        """End of the experts that this rank stores, not included."""
        return self.start_expert_id + self.config.num_experts_per_worker

    def add_layer(self, layer: int, module: nn.Module | None = None) -> None:
        """Name a layer with experts; the layers that were added are all there are, in order of their numbers.

        Args:
            layer: Its number in the model.
            module: Has the gate and the experts; None: `setup` looks in the model's list of layers.

        Raises:
            DwdpError: Set-up has happened, or the layer was added before.
        """
        if self._running is not None:
            raise DwdpError(f"layer {layer} was added after set-up: add all layers first")
        if layer in self._added:
            raise DwdpError(f"layer {layer} was added twice")
        self._added[layer] = module

    def add_all_layers(self) -> None:
        """Let `setup` add every layer with experts that it finds in the model, in order: for who knows no numbers."""
        self._adds_all = True

    def setup(self, model: nn.Module) -> None:
        """Move this rank's experts into shared memory, map those of the others, and let parameters show all experts.

        All ranks call it. Afterwards every parameter of an added layer has a row for each expert of the model. A
        second call does nothing. An interrupt (SIGINT, SIGTERM) takes effect behind a weight, or while others are
        waited for.

        Args:
            model: Loaded, with this rank's experts or with all.

        Raises:
            DwdpError: It cannot be done; everything is as it was before. Its kinds: `PartitionInvalid`,
                `ExpertsUnsupported`, `RankLost`.
            DeviceError: There is not enough memory; everything is as it was before.
        """
        if self._running is not None:
            return
        if self._failed:
            raise DwdpError(
                "set-up has failed, and the others do not wait any more: leave the block, and enter a new one"
            )
        machine, self.layers = agree(self._ranks, self.config, lambda: self._find(model))
        with held_back() as handle_interrupts:
            self._undo, self._ranks.meanwhile = Undo(), handle_interrupts
            try:
                with telling_of_files():
                    self._running = self._share(model, machine, handle_interrupts)
                handle_interrupts()
            except BaseException as error:  # also an interrupt: set-up is all or nothing
                self._running, self._failed = None, True
                self._undo.run(error)
                self._ranks.close()  # the others need not wait for the deadline
                raise

    def prefetch_first_layers(self) -> None:
        """Fetch what a forward needs first, unless it is on its way already: the start of a forward."""
        self._active().prefetcher.begin()

    def wait_and_bind(self, module: nn.Module, layer: int) -> None:
        """Let the experts of a layer be computed when they are there.

        Args:
            module: Whose parameters of the names of the layer's stacked tensors show all experts afterwards, if they
                did not: weights and what is small beside them.
            layer: Its number.

        Raises:
            RankLost: Another rank ended.
            DwdpError: The layer was not added, or a parameter of `module` may stand for several tensors.
        """
        self._active().own_modules.show(module, self._position(layer))
        self.wait(layer)

    def wait(self, layer: int) -> None:
        """Let what is enqueued from now on begin when the experts of a layer are there; once in a layer is enough.

        Raises:
            RankLost: Another rank ended.
            DwdpError: The layer was not added.
        """
        active, position = self._active(), self._position(layer)
        active.links.check()
        active.prefetcher.wait(position)

    def record_compute_and_prefetch_next(self, layer: int) -> None:
        """Say that the kernels of a layer's experts are enqueued: the next layer of its slot is fetched after them.

        Raises:
            DwdpError: The layer was not added.
        """
        self._active().prefetcher.release(self._position(layer))

    def cleanup(self) -> None:
        """Give everything back: parameters have storage of their own again, with what was loaded. Twice is allowed.

        Raises:
            DeviceError: The device failed, or has no room for the parameters; the rest is given back.
        """
        self._give_back(None)

    def __enter__(self) -> Self:
        with self._turn:
            self._check_alone()
            DwdpManager._entered = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with held_back():
            try:
                self._give_back(error)
            finally:
                self._ranks.close()
                DwdpManager._entered = None

    @staticmethod
    def _check_alone() -> None:
        if DwdpManager._entered is not None:
            raise DwdpError("this process shares the experts of a model already: leave that block first")

    def _give_back(self, cause: BaseException | None) -> None:
        with held_back():
            undo, self._undo = self._undo, Undo()
            self._running = None
            undo.run(cause)

    def _share(self, model: nn.Module, machine: Machine, handle_interrupts: Callable[[], None]) -> "_Running":
        links = Links(self._ranks, self._deadline)
        self._undo.add(links.close)
        shared = share(self.layers, self.config, self._ranks, links, machine, self._undo, handle_interrupts)
        self._positions = {layer: position for position, layer in enumerate(sorted(self._added))}
        own_modules = self._guarded(model)
        prefetcher = Prefetcher(machine, shared.copies, self._observer)
        self._undo.add(prefetcher.close)
        handle_interrupts()
        self._ranks.gather(True)  # the others read this rank's memory from now on
        links.watch()
        return _Running(prefetcher, links, own_modules)

    def _guarded(self, model: nn.Module) -> OwnModules:
        """Refuse from now on what would take the model for a whole, also through an engine's own modules."""
        guard = Guard()
        self._undo.add(guard.close)
        guard.modules(holders(model, self.layers))
        for layer in self.layers:
            for weight in layer.weights:
                guard.tensor(weight.tensor, f"{layer.name}: {weight.name}")
        own_modules = OwnModules(self.layers, self.config.num_experts_per_worker, guard)
        self._undo.add(own_modules.close)
        return own_modules

    def _active(self) -> "_Running":
        if self._running is None:
            raise DwdpError("no model was set up: call setup(model) first")
        return self._running

    def _position(self, layer: int) -> int:
        """Return a layer's place in the order of use."""
        try:
            return self._positions[layer]
        except KeyError:
            known = ", ".join(map(str, self._positions))
            raise DwdpError(f"layer {layer} was not added before setup, only {known}: add_layer names each") from None

    def _find(self, model: nn.Module) -> tuple[Machine, list[ExpertLayer]]:
        machine = self._machine or machine_of(model)
        check_model(model)
        return machine, self._find_layers(model, machine.vmm.granularity)

    def _find_layers(self, model: nn.Module, granularity: int) -> list[ExpertLayer]:
        if self._adds_all:
            found = find_layers(model, self.config, granularity)
            self._added = {number: layer.block for number, layer in enumerate(found)}
            return found
        if not self._added:
            raise ExpertsUnsupported("no layer was added: call add_layer for each layer with experts, before setup")
        return [
            find_layer(
                numbered_layer(model, number) if module is None else module,
                f"layer {number}",
                self.config,
                granularity,
            )
            for number, module in sorted(self._added.items())
        ]


class _Running(NamedTuple):
    """What set-up made."""

    prefetcher: Prefetcher
    links: Links
    own_modules: OwnModules
