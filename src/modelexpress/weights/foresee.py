"""Foreseeing a load: what would be read, from where, over what, and about how long it would take."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from modelexpress.client import Client
from modelexpress.errors import ModelExpressError, NoSourceFound
from modelexpress.identity import SourceIdentity
from modelexpress.peer import HeldLease, PeerClient, host_id, new_worker_id
from modelexpress.settings import Settings
from modelexpress.transfer.compare import compare
from modelexpress.transfer.manifest import Manifest
from modelexpress.transport import open_first
from modelexpress.weights.candidates import find_candidates, order_candidates
from modelexpress.weights.catalog import Model
from modelexpress.weights.chosen_rows import RowRanges, travelling_bytes
from modelexpress.weights.connecting import usable_transports
from modelexpress.weights.fetch import Find
from modelexpress.weights.pull_folder import find_by_name
from modelexpress.weights.target import Target
from modelexpress.wire.records import SourceRef
from modelexpress.wire.tensors import Integers, Tensors

_MOST_ASKED = 8
"""Candidates that a plan looks at: each dead one costs seconds, and a load would rarely come so far."""

Check = Callable[[Manifest], Integers]
"""Returns the bytes of each tensor that would travel, or raises where a load would refuse the manifest."""


@dataclass(frozen=True)
class Prospect:
    """One candidate, as a load would find it.

    Args:
        worker_id: Of the candidate.
        endpoint: HOST:PORT of its worker server.
        readers: Readers that it said to have.
        transport: What the bytes would travel over; "" where nothing works.
        tensors: Number of tensors it holds.
        nbytes: Bytes that would travel; tied tensors travel once, and of rows the chunks that hold them.
        bytes_per_second: Measured limit of that link, or None.
        reasons: Why it, or a faster transport, cannot be used.
    """

    worker_id: str
    endpoint: str
    readers: float
    transport: str
    tensors: int
    nbytes: int
    bytes_per_second: float | None
    reasons: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """Duration of the copy at the limit of the link; None where that is unknown."""
        return self.nbytes / self.bytes_per_second if self.bytes_per_second else None


@dataclass(frozen=True)
class LoadPlan:
    """What `load` would do, moving nothing: the candidates in the order in which they would be asked."""

    wanted: str
    prospects: tuple[Prospect, ...]

    @property
    def choice(self) -> Prospect | None:
        """The candidate that would be read from: the first that works."""
        return next((prospect for prospect in self.prospects if prospect.transport), None)

    def json(self) -> str:
        """Return the plan as a JSON object."""
        rows = [{**asdict(prospect), "seconds": prospect.seconds} for prospect in self.prospects]
        return json.dumps({"wanted": self.wanted, "prospects": rows})


def plan(
    model: Model,
    identity: SourceIdentity,
    rank: int = 0,
    *,
    registry: str | None = None,
    rows: RowRanges | None = None,
    settings: Settings | None = None,
) -> LoadPlan:
    """Return what `load` would do with the same arguments, moving nothing and changing nothing.

    Raises:
        NoSourceFound: No ready source is registered.
        RegistryError: The registry could not be asked.
        UnsupportedModel: The model holds tensors that cannot be filled.
        ConfigurationError: `rows` does not fit the model.
    """
    target = Target(model, rows=rows)

    def check(manifest: Manifest) -> Integers:
        compare(manifest, target.wanted(manifest.scope))
        return travelling_bytes(manifest, target.catalogue, target.rows)

    return _foresee(
        f"'{identity.model_name}' ({identity.source_id}) rank {rank}",
        lambda client: find_candidates(client, identity, rank),
        check,
        registry,
        settings or Settings.read(),
    )


def plan_folder(
    model_name: str,
    *,
    registry: str | None = None,
    source_id: str | None = None,
    settings: Settings | None = None,
) -> LoadPlan:
    """Return what `pull_folder` would do, moving nothing.

    Raises:
        NoSourceFound: No ready source has that name.
        LoadError: Several identities have that name, or the model is split over ranks.
        RegistryError: The registry could not be asked.
    """
    return _foresee(
        f"'{model_name}'",
        lambda client: find_by_name(client, model_name, source_id),
        lambda manifest: manifest.tensors.nbytes,
        registry,
        settings or Settings.read(),
    )


def _foresee(wanted: str, find: Find, check: Check, registry: str | None, settings: Settings) -> LoadPlan:
    reader = new_worker_id()
    with Client(registry or settings.registry) as client:
        refs = order_candidates(find(client), host_id(), reader)
        if not refs:
            raise NoSourceFound(f"no ready source of {wanted} is registered: see `mx sources --all`")
        asked = refs[:_MOST_ASKED]
        return LoadPlan(wanted, tuple(_prospect(client, ref, reader, check, settings) for ref in asked))


def _prospect(client: Client, ref: SourceRef, reader: str, check: Check, settings: Settings) -> Prospect:
    endpoint, load = "", ref.source_load or 0.0
    try:
        found = client.get(ref.source_id, ref.worker_id)
        endpoint = found[0].worker_grpc_endpoint if found else ""
        with PeerClient(endpoint) as peer:
            grant = peer.acquire(ref.source_id, ref.worker_id, reader, host_id())
            with HeldLease(peer, grant), usable_transports(settings) as transports:
                manifest = peer.manifest(grant)
                nbytes = check(manifest)
                opened = open_first(transports, grant.transports, grant.lease_id)
                opened.reader.close()
                descriptors = {offer.name: offer.descriptor for offer in grant.transports}
                limit = opened.transport.limit(descriptors[opened.transport.name])
    except ModelExpressError as error:
        return Prospect(ref.worker_id, endpoint, load, "", 0, 0, None, (str(error),))
    return Prospect(
        ref.worker_id,
        endpoint,
        load,
        opened.transport.name,
        len(manifest),
        _counted_once(manifest.tensors, nbytes),
        limit.bytes_per_second if limit else None,
        tuple(f"{name}: {reason}" for name, reason in opened.skipped),
    )


def _counted_once(tensors: Tensors, nbytes: Integers) -> int:
    """Return the sum of the bytes of all tensors, of those in the same place once."""
    columns = (tensors.regions, tensors.offsets, nbytes)
    return sum(nbytes for _, _, nbytes in set(zip(*(column.tolist() for column in columns), strict=True)))
