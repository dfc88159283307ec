"""Many small writes in one transaction: whatever arrives while a commit runs shares the next one."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")
Operation = Callable[[sqlite3.Connection], Result]


class GroupCommit:
    """Runs write operations of one event loop, in order, on a thread of their own.

    There is no timer: an operation that comes alone is committed alone and at once.

    Args:
        connection: In autocommit mode; owned from here on, closed with this.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mx-registry-writer")
        self._pending: list[tuple[Operation[Any], asyncio.Future[Any]]] = []
        self._flushing: asyncio.Task[None] | None = None

    async def run(self, operation: Operation[Result]) -> Result:
        """Return what an operation returned, once it is committed.

        Raises:
            sqlite3.Error: It, or one that shared its transaction, failed; nothing of either was written.
        """
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending.append((operation, done))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="mx-registry-commit")
        return await done

    async def close(self) -> None:
        """Commit what is pending and close the connection. Closing twice is allowed."""
        if self._flushing is not None:
            await self._flushing
        await asyncio.to_thread(self._thread.shutdown)
        self._connection.close()

    async def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            batch, self._pending = self._pending, []
            operations = [operation for operation, _ in batch]
            try:
                results = await loop.run_in_executor(self._thread, self._commit, operations)
            # The edge of a thread: whatever went wrong there is for the callers who wait for it.
            except Exception as error:  # noqa: BLE001
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
                continue
            for (_, done), result in zip(batch, results, strict=True):
                # A caller that was cancelled no longer wants its result.
                if not done.done():
                    done.set_result(result)
        self._flushing = None

    def _commit(self, operations: list[Operation[Any]]) -> list[Any]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = [operation(self._connection) for operation in operations]
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite has already ended the transaction after some errors, a full disk for one.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return results
