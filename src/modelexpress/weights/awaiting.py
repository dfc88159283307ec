"""Waiting for a source, no longer than asked: nobody knows whether there will ever be one."""

import time

from modelexpress.client import Client
from modelexpress.errors import NoSourceFound, RegistryError, RegistryUnreachable
from modelexpress.identity import SourceIdentity
from modelexpress.settings import Settings
from modelexpress.weights.candidates import find_candidates
from modelexpress.wire.records import SourceStatus

_PAUSE = 0.2
"""Seconds between two questions."""
_LEAST_TIMEOUT = 0.1
"""Seconds that the registry has to answer, even where nobody waits for a source."""


def await_source(identity: SourceIdentity, rank: int, settings: Settings) -> None:
    """Return once the registry lists a ready source, which may be at once.

    Args:
        identity: What is wanted.
        rank: Of this worker within its replica.
        settings: The registry, and `source_query_timeout`, the seconds to wait; 0: the registry is asked once.

    Raises:
        NoSourceFound: There is none; the message names sources that are sharded over another number of ranks.
        RegistryError: The registry could not be asked.
    """
    end = time.monotonic() + settings.source_query_timeout
    with Client(settings.registry, timeout=max(settings.source_query_timeout, _LEAST_TIMEOUT)) as client:
        while not _listed(client, identity, rank, end):
            left = end - time.monotonic()
            if left <= 0:
                raise NoSourceFound(_nobody(client, identity, rank, settings.source_query_timeout))
            time.sleep(min(_PAUSE, left))


def other_sizes(client: Client, identity: SourceIdentity) -> tuple[int, ...]:
    """Return the other tensor-parallel sizes in which the model is offered for the same engine.

    Raises:
        RegistryError: The registry could not be asked.
    """
    refs = client.list_sources(status=SourceStatus.READY, model_name=identity.model_name)
    kind = (identity.mx_source_type, identity.backend_framework)
    found = set()
    for source_id, worker_id in {ref.source_id: ref.worker_id for ref in refs}.items():
        record = client.get(source_id, worker_id)
        if record is not None and (record[1].mx_source_type, record[1].backend_framework) == kind:
            found.add(record[1].tensor_parallel_size)
    return tuple(sorted(found - {identity.tensor_parallel_size}))


def _listed(client: Client, identity: SourceIdentity, rank: int, end: float) -> bool:
    try:
        return bool(find_candidates(client, identity, rank))
    except RegistryUnreachable:
        if time.monotonic() >= end:
            raise
        return False  # it may be starting as well


def _nobody(client: Client, identity: SourceIdentity, rank: int, waited: float) -> str:
    what = f"'{identity.model_name}' ({identity.source_id}) rank {rank}"
    try:
        sizes = other_sizes(client, identity)
    except RegistryError:
        sizes = ()
    if not sizes:
        return f"no ready source of {what} is registered after {waited:g} s: see `mx sources --all`"
    size, own = " and ".join(map(str, sizes)), identity.tensor_parallel_size
    return (
        f"sources of {what} are sharded with tensor parallel size {size}, and this replica with {own}: a shard of one "
        f"size is none of the other. Start this replica with {sizes[0]}, or let it load from storage: then it is the "
        f"first source with {own}"
    )
