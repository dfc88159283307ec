"""Loading a model: strategies in order, until one has filled it completely."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from modelexpress.errors import ConfigurationError, LoadError, ModelExpressError, PartialModel
from modelexpress.identity import SourceIdentity
from modelexpress.peer import Worker
from modelexpress.settings import Settings
from modelexpress.weights.catalog import Model
from modelexpress.weights.chosen_rows import RowRanges
from modelexpress.weights.publish import publish
from modelexpress.weights.report import Journal, LoadReport, Progress
from modelexpress.weights.strategies import NativeStrategy, PeerStrategy, StorageStrategy, Strategy
from modelexpress.weights.target import Target


def load(
    model: Model,
    identity: SourceIdentity,
    rank: int = 0,
    *,
    registry: str | None = None,
    storage: Path | str | None = None,
    native: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
    worker: Worker | None = None,
    keep: bool = True,
    rows: RowRanges | None = None,
    progress: Progress | None = None,
    settings: Settings | None = None,
) -> LoadReport:
    """Fill a model: from a peer, else from storage, else by the caller's own loader.

    Tensors on the meta device get memory without being initialised. Nothing of the model is changed before source
    and target agree on every tensor; whatever is returned was verified completely.

    Args:
        model: A module, or tensors by name, in host memory, on CUDA devices, or on the meta device.
        identity: What the weights are.
        rank: Of this worker within its replica.
        registry: HOST:PORT of the registry; None takes it from the environment.
        storage: A checkpoint folder; None leaves storage out. That of a model of transformers may hold experts one by
            one, as transformers writes it.
        native: Fills the model in its own way, and raises what it likes; None leaves it out.
        device: Where tensors on the meta device get their memory.
        worker: Makes this process a source, too: of what has arrived while the rest is on its way, and of the model
            until the worker is closed; the tensors must not be changed before. Without one this target takes, and
            gives nothing.
        keep: False where what the tensors hold is of no use, even if loading fails: with a worker, tensors in host
            memory are moved to where others can read them, and need not take that along.
        rows: By name, tensors that are loaded in part: (start, stop) are the rows, counted along the first dimension,
            of what a source or the checkpoint holds under that name, and the model's tensor has room for just these.
            Such a model is no source for others: it goes without `worker`.
        progress: Told the bytes in place and the bytes in all.
        settings: Read from the environment when None.

    Raises:
        NoSourceFound: There is no source, and neither `storage` nor `native` was given.
        ManifestMismatch: Source and model do not hold the same tensors, or the source lacks rows that are wanted.
        UnsupportedModel: The model holds tensors that cannot be filled.
        NoRoom: The device has no memory left for the tensors on the meta device.
        ConfigurationError: `worker` is closed, or offers this identity already; `rows` does not fit the model, or was
            given together with `worker`.
        PartialModel: Every strategy failed, after weights had been overwritten: the model must not be used.
        LoadError: Every strategy failed and the model is as before; `causes` has one error for each. A single
            cause is raised itself.

    Example:
        >>> print(load(model, identity, registry="localhost:8001", storage="checkpoint/"))  # doctest: +SKIP
    """
    if rows and worker is not None:
        raise ConfigurationError(
            f"only some rows of {len(rows)} tensors are loaded, so that this process is no source of the whole: "
            "leave `worker` out"
        )
    settings = settings or Settings.read()
    journal = Journal(progress)
    registry = registry or settings.registry
    strategies: list[Strategy] = [PeerStrategy(identity, rank, registry, settings, worker=worker)]
    if storage is not None:
        strategies.append(StorageStrategy(Path(storage), model))
    if native is not None:
        strategies.append(NativeStrategy(native))
    with journal.stage("catalogue"):
        target = Target(model, device, keep=keep, rows=rows)
    fill(target, strategies, journal)
    if worker is not None and not worker.publishes(identity.source_id):
        _publish(model, identity, rank, worker, settings, journal)
    return journal.report()


def run_strategies(target: Target, strategies: Sequence[Strategy], journal: Journal) -> LoadReport:
    """Run strategies until one fills the target, and report what happened.

    Raises:
        LoadError: As `fill` does.
    """
    fill(target, strategies, journal)
    return journal.report()


def fill(target: Target, strategies: Sequence[Strategy], journal: Journal) -> None:
    """Run strategies until one fills the target.

    Raises:
        PartialModel: All failed, after something had been written.
        LoadError: All failed; the model is as before. A single cause is raised itself.
    """
    causes: list[ModelExpressError] = []
    for strategy in strategies:
        try:
            strategy.fill(target, journal)
        except ModelExpressError as error:
            target.roll_back()
            causes.append(error)
            journal.notes.append(f"{strategy.name}: {error}")
        else:
            journal.strategy, journal.tensors = strategy.name, target.memories
            return
    raise _failure(target, causes)


def _publish(
    model: Model, identity: SourceIdentity, rank: int, worker: Worker, settings: Settings, journal: Journal
) -> None:
    """Make a model that was loaded in another way than from a peer a source; where that fails it is loaded still."""
    with journal.stage("publish"):
        try:
            publish(model, identity, rank, worker=worker, settings=settings)
        except ModelExpressError as error:
            journal.notes.append(f"loaded, but not published: {error}")


def _failure(target: Target, causes: Sequence[ModelExpressError]) -> ModelExpressError:
    last = causes[-1]
    if target.written:
        return PartialModel(f"no weights could be loaded, and some were overwritten: {last}", causes)
    if len(causes) == 1:
        return last
    text = "; ".join(str(cause) for cause in causes)
    return LoadError(f"no strategy could load the weights: {text}", causes)
