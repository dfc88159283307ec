"""Ranks agree, through the store of torch.distributed, on a name that no group before has had.

Under the name of a group that is gone, the store still has its addresses, and a rank that came alone, and gave up,
must not be out of step with the others when it comes again. So the first rank names each group anew, for ranks that
ask, when all have asked. Who has its answer, or gives up, takes its question back. Then each says that it is there,
and who knows that of all of them is not left alone by what comes next, which cannot be interrupted.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

from torch.distributed.distributed_c10d import Store

from modelexpress.errors import RankLost

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1


def meet(store: Store, members: Sequence[int], rank: int, deadline: float, meanwhile: Callable[[], object]) -> str:
    """Return the name of the new group, the same on all ranks, when all of them have it.

    Args:
        store: That all ranks of the world use.
        members: Ranks of the world, in order.
        rank: This one's place among them.
        deadline: Seconds to wait for the others.
        meanwhile: Is called every moment; what it raises ends the waiting.

    Raises:
        RankLost: The others did not come.
    """
    waiting = _Waiting(store, time.monotonic() + deadline, meanwhile)
    base = f"modelexpress-dwdp/{'-'.join(map(str, members))}"
    try:
        name = _asked(waiting, base, rank) if rank else _named(waiting, base, len(members))
        _all_here(waiting, name, rank, len(members))
        return name
    except TimeoutError as error:
        raise RankLost(f"{_of(members)} do not all come together within {deadline:g} s") from error
    except RuntimeError as error:  # torch's DistError: the store's process has ended
        raise RankLost(f"{_of(members)} do not all come together: {error}") from error


def _of(members: Sequence[int]) -> str:
    return f"ranks {list(members)} of the world"


class _Waiting:
    """Waits for keys of a store, and returns to Python every moment: within the store's own calls nothing interrupts.

    Args:
        store: Has the keys.
        end: When to give up, by the monotonic clock.
        meanwhile: Is called every moment.
    """

    def __init__(self, store: Store, end: float, meanwhile: Callable[[], object]) -> None:
        self.store = store
        self._end, self._meanwhile = end, meanwhile

    def until(self, keys: Sequence[str]) -> None:
        """Return when the store has all keys.

        Raises:
            TimeoutError: It has not.
        """
        pause = _FIRST_PAUSE
        while not self.store.check(list(keys)):
            self._meanwhile()
            if (left := self._end - time.monotonic()) <= 0:
                raise TimeoutError
            time.sleep(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def take_back(self, key: str) -> None:
        """Delete a key, unless the store is gone: why this rank leaves is what is told."""
        with suppress(RuntimeError):
            self.store.delete_key(key)


def _asked(waiting: _Waiting, base: str, rank: int) -> str:
    asks, question = f"{base}/asks/{rank}", uuid.uuid4().hex
    answer = f"{base}/answers/{question}"
    waiting.store.set(asks, question)
    try:
        waiting.until([answer])
        return waiting.store.get(answer).decode()
    finally:
        waiting.take_back(asks)


def _named(waiting: _Waiting, base: str, size: int) -> str:
    name = f"{base}/{uuid.uuid4().hex}"
    asks = [f"{base}/asks/{rank}" for rank in range(1, size)]
    waiting.until(asks)  # all at once: one that was there may have taken its question back since
    for question in [waiting.store.get(key).decode() for key in asks]:
        waiting.store.set(f"{base}/answers/{question}", name)
    return name


def _all_here(waiting: _Waiting, name: str, rank: int, size: int) -> None:
    waiting.store.set(f"{name}/here/{rank}", "")
    try:
        waiting.until([f"{name}/here/{other}" for other in range(size)])
    except BaseException:  # also an interrupt: who looks from now on must not count on this rank
        waiting.take_back(f"{name}/here/{rank}")
        raise
