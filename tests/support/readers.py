"""Who reads from a worker, as others are told."""

from modelexpress.peer import PeerClient
from modelexpress.wire.records import ReaderStatus
from tests.support.waiting import wait_until


def readers(endpoint: str) -> list[ReaderStatus]:
    """Return the readers of a worker, by the address of its server."""
    with PeerClient(endpoint) as client:
        return client.readers()


def only_reader(endpoint: str) -> ReaderStatus:
    """Return the reader of a worker, which has exactly one, once it has."""
    wait_until(lambda: len(readers(endpoint)) == 1)
    return readers(endpoint)[0]
