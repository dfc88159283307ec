"""Seeking: a target asks sources, and those whom they name, until one lets it read."""

import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from modelexpress.errors import ManifestInvalid, PeerError
from modelexpress.peer.client import PeerClient
from modelexpress.peer.held_lease import HeldLease
from modelexpress.peer.host import host_id
from modelexpress.peer.joining import Admitted, Answer, Redirected, Refused, search
from modelexpress.wire.peer import LeaseGrant
from modelexpress.wire.records import Asking, Member

Complain = Callable[[Member, PeerError | ManifestInvalid], None]
"""Told who was of no use, and why."""
Tell = Callable[[Member], None]
"""Told who is asked, before."""


class Upstream:
    """A worker that lets this one read, until the block ends: its client, and the lease.

    After an error the lease has ended with the block, else a moment later.

    Args:
        source_id: Of the material.
        member: The worker.
        client: Owned from now on.
        grant: What it answered.
    """

    def __init__(self, source_id: str, member: Member, client: PeerClient, grant: LeaseGrant) -> None:
        self.source_id = source_id
        self.member = member
        self.above = grant.above
        self.client = client
        self.lease = HeldLease(client, grant)
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._exit.enter_context(self.client)
        self._exit.enter_context(self.lease)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            # Nobody who has everything waits for the source to hear of it. The interpreter does, at its exit.
            threading.Thread(target=self._exit.close, name="mx-parting").start()
        else:
            self._exit.close()


@dataclass
class Seeker:
    """Asks on behalf of one target for one material.

    Args:
        source_id: Of the material.
        complain: Told who was of no use, and why.
        tell: Told who is asked, before.
    """

    source_id: str
    complain: Complain
    tell: Tell
    _found: tuple[PeerClient, LeaseGrant] | None = None

    def seek(self, sources: Iterable[Member], asking: Asking) -> Upstream | None:
        """Return the first worker that lets the target read; None when nobody does.

        Args:
            sources: Complete sources, best first; taken one by one as they are needed.
            asking: The target.
        """
        steps = search(sources, asking)
        try:
            member, question = next(steps)
            while True:
                member, question = steps.send(self._ask(member, question))
        except StopIteration as end:
            found: Member | None = end.value
        if found is None or self._found is None:
            return None
        return Upstream(self.source_id, found, *self._found)

    def _ask(self, member: Member, asking: Asking) -> Answer:
        self.tell(member)
        with ExitStack() as undo:
            client = undo.enter_context(PeerClient(member.endpoint))
            try:
                answer = client.ask(self.source_id, member.worker_id, asking, host_id())
            except (PeerError, ManifestInvalid) as error:
                self.complain(member, error)
                return Refused()
            if isinstance(answer, Redirected):
                return answer
            undo.pop_all()
        self._found = (client, answer)
        return Admitted()
