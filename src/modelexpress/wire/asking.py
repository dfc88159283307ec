"""Conversions of what a target says when it asks for a lease."""

from modelexpress.wire import peer_pb2 as pb
from modelexpress.wire.peer import MOST_MEMBERS
from modelexpress.wire.records import Asking, Member

_LONGEST_ID = 128
_LONGEST_ENDPOINT = 256


def asking_to_message(asking: Asking, source_id: str, worker_id: str, host: str) -> pb.AcquireLeaseRequest:
    """Return the question to one worker about one material.

    Args:
        asking: The target.
        source_id: Of the material.
        worker_id: Of the worker that is meant.
        host: Host id of the target, for people who watch.
    """
    return pb.AcquireLeaseRequest(
        source_id=source_id,
        worker_id=worker_id,
        reader_id=asking.member.worker_id,
        reader_host=host,
        reader_endpoint=asking.member.endpoint,
        verified_chunks=asking.chunks,
        returning=asking.returning,
        avoid=sorted(asking.avoid)[:MOST_MEMBERS],
    )


def asking_from_message(message: pb.AcquireLeaseRequest) -> Asking:
    """Return who asks. What is too long to be true is cut off: it only concerns the asker."""
    member = Member(message.reader_id[:_LONGEST_ID], message.reader_endpoint[:_LONGEST_ENDPOINT])
    avoid = frozenset(name[:_LONGEST_ID] for name in message.avoid[:MOST_MEMBERS])
    return Asking(member, message.verified_chunks, message.returning, avoid)
