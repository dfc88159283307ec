"""Ranks agree, through the store of torch.distributed, on a name that no group before has had.

Under the name of a group that is gone, the store still has its addresses, and a rank that came alone, and gave up,
must not be out of step with the others when it comes again. So the first rank names each group anew, for ranks that
ask. Who has its answer, or gives up, takes its question back.
"""

import time
import uuid
from collections.abc import Sequence
from datetime import timedelta

from torch.distributed.distributed_c10d import Store

from modelexpress.errors import RankLost


def meet(store: Store, members: Sequence[int], rank: int, deadline: float) -> str:
    """Return the name of the new group, the same on all ranks.

    Args:
        store: That all ranks of the world use.
        members: Ranks of the world, in order.
        rank: This one's place among them.
        deadline: Seconds to wait for the others.

    Raises:
        RankLost: The others did not come.
    """
    base = f"modelexpress-dwdp/{'-'.join(map(str, members))}"
    end = time.monotonic() + deadline
    try:
        if rank:
            return _asked(store, base, rank, end)
        return _named(store, base, len(members), end)
    except RuntimeError as error:  # torch's DistStoreError: the time is up, or the store's process has ended
        raise RankLost(f"ranks {list(members)} of the world do not all come together: {error}") from error


def _asked(store: Store, base: str, rank: int, end: float) -> str:
    asks, question = f"{base}/asks/{rank}", uuid.uuid4().hex
    store.set(asks, question)
    try:
        return _awaited(store, f"{base}/answers/{question}", end).decode()
    finally:
        store.delete_key(asks)


def _named(store: Store, base: str, size: int, end: float) -> str:
    name = f"{base}/{uuid.uuid4().hex}"
    for question in [_awaited(store, f"{base}/asks/{rank}", end).decode() for rank in range(1, size)]:
        store.set(f"{base}/answers/{question}", name)
    return name


def _awaited(store: Store, key: str, end: float) -> bytes:
    store.wait([key], timedelta(seconds=max(end - time.monotonic(), 0.001)))
    return store.get(key)
