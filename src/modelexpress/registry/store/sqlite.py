"""Records in one SQLite file: the store of a registry that runs alone and must survive a restart.

What a worker published is written once, into the table `publication`. What changes with every heartbeat is a
narrow row in `liveness`, so that thousands of heartbeats touch a few pages.
"""

import asyncio
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from modelexpress.errors import StoreError
from modelexpress.registry.store import sqlite_statements as sql
from modelexpress.registry.store.base import DEAD, Liveness, Store, Update, Usage, WorkerState
from modelexpress.registry.store.group_commit import GroupCommit, Operation
from modelexpress.wire.records import Publication, SourceQuery, SourceRef, SourceStatus, WorkerKey

Result = TypeVar("Result")

_VERSION = 1


class SqliteStore(Store):
    """One file, one thread that writes and one that reads; open it with `SqliteStore.open`.

    A commit survives the death of the process. The last ones may be lost when the host loses power, which
    costs a fleet one heartbeat interval; the file is never damaged (journal mode WAL, synchronous NORMAL).
    """

    def __init__(self, path: Path, writing: sqlite3.Connection, reading: sqlite3.Connection) -> None:
        self._path = path
        self._commits = GroupCommit(writing)
        self._reading = reading
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="mx-registry-reader")

    @classmethod
    async def open(cls, path: Path) -> "SqliteStore":
        """Open a file, made with its folder where it is missing.

        Raises:
            StoreError: The file cannot be opened, is no database, or was written by another version.
        """
        return await asyncio.to_thread(cls._open, path)

    @classmethod
    def _open(cls, path: Path) -> "SqliteStore":
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            writing = _connect(path)
            version = writing.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise StoreError(f"{path} was written by another version ({version}): name another file")
            writing.execute("PRAGMA journal_mode=WAL")
            writing.executescript(f"BEGIN IMMEDIATE;{sql.SCHEMA}PRAGMA user_version={_VERSION};COMMIT;")
            return cls(path, writing, _connect(path))
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the registry file {path} cannot be used: {error}") from error

    async def publish(self, publication: Publication, now: int) -> None:
        ref = publication.ref
        row = (
            ref.source_id,
            ref.worker_id,
            ref.model_name,
            ref.model_name.lower(),
            ref.worker_rank,
            ref.accelerator,
            ref.training_step,
            ref.layout_signature,
            json.dumps(dict(ref.topology)),
            publication.identity,
            publication.worker,
        )
        state = WorkerState.told(publication.status)
        nbytes = len(publication.identity) + len(publication.worker)

        def write(connection: sqlite3.Connection) -> None:
            (number,) = connection.execute(sql.PUBLISH, row).fetchone()
            connection.execute(sql.START_LIFE, (number, state, now, nbytes))

        await self._write(write)

    async def update(self, key: WorkerKey, state: WorkerState, now: int, source_load: float | None = None) -> Update:
        def write(connection: sqlite3.Connection) -> Update:
            if connection.execute(sql.UPDATE, (state, now, source_load, *key, state)).rowcount:
                return Update.DONE
            known = connection.execute(sql.FIND, key).fetchone()
            return Update.NOT_FOUND if known is None else Update.WITHDRAWN

        return await self._write(write)

    async def get(self, key: WorkerKey) -> tuple[Publication, Liveness] | None:
        def read(connection: sqlite3.Connection) -> tuple[Publication, Liveness] | None:
            row = connection.execute(sql.GET, key).fetchone()
            if row is None:
                return None
            *columns, identity, worker, state = row
            ref = _ref(columns)
            live = Liveness(WorkerState(state), ref.updated_at, ref.source_load)
            return Publication(ref=ref, status=SourceStatus.UNKNOWN, identity=identity, worker=worker), live

        return await self._read(read)

    async def list_refs(self, query: SourceQuery, stale_before: int) -> list[SourceRef]:
        statement, values = sql.listing(query, stale_before)

        def read(connection: sqlite3.Connection) -> list[SourceRef]:
            return [_ref(row) for row in connection.execute(statement, values)]

        return await self._read(read)

    async def mark_lost(self, stale_before: int) -> int:
        return await self._write(
            lambda connection: connection.execute(sql.MARK_LOST, (WorkerState.LOST, *DEAD, stale_before)).rowcount
        )

    async def delete_dead(self, stale_before: int) -> int:
        def write(connection: sqlite3.Connection) -> int:
            dead = connection.execute(sql.FIND_DEAD, (*DEAD, stale_before)).fetchall()
            connection.executemany(sql.DELETE_PUBLICATION, dead)
            connection.executemany(sql.DELETE_LIFE, dead)
            return len(dead)

        return await self._write(write)

    async def usage(self) -> Usage:
        def read(connection: sqlite3.Connection) -> Usage:
            rows = connection.execute(sql.USAGE).fetchall()
            return Usage({WorkerState(state): count for state, count, _ in rows}, sum(nbytes for *_, nbytes in rows))

        return await self._read(read)

    async def close(self) -> None:
        await self._commits.close()
        await asyncio.to_thread(self._reader.shutdown)
        self._reading.close()

    async def _write(self, operation: Operation[Result]) -> Result:
        try:
            return await self._commits.run(operation)
        except sqlite3.Error as error:
            raise StoreError(f"the registry file {self._path} cannot be written: {error}") from error

    async def _read(self, operation: Operation[Result]) -> Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reader, operation, self._reading)
        except sqlite3.Error as error:
            raise StoreError(f"the registry file {self._path} cannot be read: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _ref(row: "list[object] | tuple[object, ...]") -> SourceRef:
    fields = dict(zip(sql.REF_FIELDS, row, strict=True))
    fields["topology"] = json.loads(str(fields["topology"]))
    return SourceRef(**fields)  # type: ignore[arg-type]
