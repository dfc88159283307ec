"""Waiting for a source, no longer than asked: nobody knows whether there will ever be one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from modelexpress.client import Client
from modelexpress.errors import NoSourceFound, RegistryError, RegistryUnreachable
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from modelexpress.weights.candidates import find_candidates
from modelexpress.wire.records import SourceStatus

_PAUSE = 0.2
"""Seconds between two questions."""


Sizeless = Callable[[SourceIdentity], SourceIdentity]
"""Returns an identity without what its extra parameters say of sizes and ranks."""


def _as_it_is(identity: SourceIdentity) -> SourceIdentity:
    return identity


def await_source(identity: SourceIdentity, rank: int, settings: Settings, sizeless: Sizeless = _as_it_is) -> None:
    """Return once the registry lists a ready source, which may be at once.

    Args:
        identity: What is wanted.
        rank: Of this worker within its replica.
        settings: The registry, and `source_query_timeout`, the seconds to wait; 0: the registry is asked once.
        sizeless: For identities that speak of sizes in extra parameters, too.

    Raises:
        NoSourceFound: There is none; the message names the sizes of those that differ in their sizes alone.
        RegistryError: The registry could not be asked.
    """
    end = time.monotonic() + settings.source_query_timeout
    with Client(settings.registry, timeout=settings.answer_timeout) as client:
        while not _listed(client, identity, rank, end):
            left = end - time.monotonic()
            if left <= 0:
                raise NoSourceFound(_nobody(client, identity, rank, settings.source_query_timeout, sizeless))
            time.sleep(min(_PAUSE, left))


@dataclass(frozen=True, order=True)
class Sizes:
    """Over how many ranks a replica shards its tensors, its layers and its experts."""

    tensor: int
    pipeline: int
    expert: int

    @classmethod
    def of(cls, identity: SourceIdentity) -> "Sizes":
        """Return those that an identity tells."""
        return cls(identity.tensor_parallel_size, identity.pipeline_parallel_size, identity.expert_parallel_size)

    def applied_to(self, identity: SourceIdentity) -> SourceIdentity:
        """Return an identity that differs from another one in nothing but these."""
        return replace(
            identity,
            tensor_parallel_size=self.tensor,
            pipeline_parallel_size=self.pipeline,
            expert_parallel_size=self.expert,
        )


def other_sizes(client: Client, identity: SourceIdentity, sizeless: Sizeless = _as_it_is) -> tuple[Sizes, ...]:
    """Return the other sizes in which the very same weights are offered.

    Sources that differ in anything else, such as the dtype or an extra parameter, are of no use at any size.

    Args:
        client: Of the registry.
        identity: What is wanted.
        sizeless: As for `await_source`.

    Raises:
        RegistryError: The registry could not be asked.
    """
    own, wanted = Sizes.of(identity), sizeless(identity).source_id
    refs = client.list_sources(status=SourceStatus.READY, model_name=identity.model_name)
    records = (client.get(source_id, ref.worker_id) for source_id, ref in {ref.source_id: ref for ref in refs}.items())
    others = [record[1] for record in records if record is not None]
    found = {Sizes.of(other) for other in others if sizeless(own.applied_to(other)).source_id == wanted}
    return tuple(sorted(found - {own}))


def _listed(client: Client, identity: SourceIdentity, rank: int, end: float) -> bool:
    try:
        return bool(find_candidates(client, identity, rank))
    except RegistryUnreachable:
        if time.monotonic() >= end:
            raise
        return False  # it may be starting as well


def _nobody(client: Client, identity: SourceIdentity, rank: int, waited: float, sizeless: Sizeless) -> str:
    what = f"'{identity.model_name}' ({identity.source_id}) rank {rank}"
    try:
        sizes = other_sizes(client, identity, sizeless)
    except RegistryError:
        sizes = ()
    if not sizes:
        return f"no ready source of {what} is registered after {waited:g} s: see `mx sources --all`"
    own = Sizes.of(identity)
    offered = ", or ".join(_described(size, (own, *sizes)) for size in sizes)
    return (
        f"sources of {what} are sharded with {offered}, and this replica with {_described(own, (own, *sizes))}: "
        "a shard of one size is none of the other. "
        f"Start this replica with {_described(sizes[0], (own, sizes[0]))}, or let it load from storage: then it is "
        "the first source of its size"
    )


def _described(sizes: Sizes, among: Sequence[Sizes]) -> str:
    """Return those of the sizes, in words, that are not the same in all."""
    told = [(field.name, {getattr(other, field.name) for other in among}) for field in fields(Sizes)]
    return " and ".join(f"{name} parallel size {getattr(sizes, name)}" for name, values in told if len(values) > 1)
