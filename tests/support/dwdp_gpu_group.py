"""The processes of a group, one for each GPU, as a test sees them."""

import json
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.children import Child

DEADLINE = 90.0


class Group:
    """Ranks that do one case after the other together.

    Args:
        ranks: How many; each sees all devices, and works on that of its number.
        device: cuda, cpu for the host, double for the host beneath what looks like a driver, or strict for such a one
            that refuses what a real one may.
        folder: For the file that they find each other by.
        stack: Ends them.
    """

    def __init__(self, ranks: int, device: str, folder: Path, stack: ExitStack) -> None:
        store = folder / f"store-{uuid4()}"
        self._children = [
            stack.enter_context(
                Child(
                    "tests.support.dwdp_gpu_rank",
                    *("--rank", str(rank), "--ranks", str(ranks), "--store", str(store), "--device", device),
                    environment={"GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"},
                )
            )
            for rank in range(ranks)
        ]
        for child in self._children:
            self._answer(child)

    def run(self, case: str, *, survivors: int | None = None, **options: object) -> list[dict[str, Any]]:
        """Return what each rank answers, or each of the first so many.

        Raises:
            AssertionError: One failed, or did not answer within the deadline.
        """
        for child in self._children:
            child.tell(json.dumps({"case": case, **options}))
        answers = [self._answer(child) for child in self._children[:survivors]]
        failures = [answer["failed"] for answer in answers if "failed" in answer]
        assert not failures, "\n".join(failures)
        return answers

    def leave(self, survivors: int) -> list[int]:
        """Let the first so many ranks end, and return their statuses."""
        for child in self._children[:survivors]:
            assert child.process.stdin is not None
            child.process.stdin.close()
        return [child.process.wait(DEADLINE) for child in self._children[:survivors]]

    @staticmethod
    def _answer(child: Child) -> dict[str, Any]:
        assert child.process.stdout is not None
        ready, _, _ = select.select([child.process.stdout], [], [], DEADLINE)
        assert ready, f"a rank did not answer within {DEADLINE:g} s"
        found: dict[str, Any] = child.answer()
        return found


@contextmanager
def group_of(ranks: int, device: str, folder: Path) -> Iterator[Group]:
    """Yield a group, and end its processes with the block."""
    with ExitStack() as stack:
        yield Group(ranks, device, folder, stack)
