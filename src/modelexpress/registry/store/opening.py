"""Opens the store that a location names."""

import os
from pathlib import Path

from modelexpress.errors import ConfigurationError
from modelexpress.registry.store.base import Store

FORMS = "memory, sqlite, sqlite:PATH, redis://HOST:PORT/DB, rediss://… or unix://PATH"


async def open_store(location: str, *, redis_url: str = "redis://localhost:6379") -> Store:
    """Return an open store.

    Args:
        location: `memory`; `sqlite:PATH`, or `sqlite` for a file in the user's state folder; the URL of a
            Redis, or `redis` for `redis_url`.
        redis_url: What `redis` means.

    Raises:
        ConfigurationError: The location has none of these forms, or needs a package that is not installed.
        StoreError: The store cannot be opened.
    """
    kind, _, rest = location.partition(":")
    if location == "memory":
        from modelexpress.registry.store.memory import MemoryStore

        return MemoryStore()
    if kind == "sqlite":
        from modelexpress.registry.store.sqlite import SqliteStore

        return await SqliteStore.open(Path(rest).expanduser() if rest else default_sqlite_path())
    if kind in ("redis", "rediss", "unix"):
        try:
            from modelexpress.registry.store.redis import RedisStore
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"the store {location} needs the package {error.name}: pip install 'modelexpress[redis]'"
            ) from error
        return await RedisStore.open(redis_url if location == "redis" else location)
    raise ConfigurationError(f"{location!r} names no store: use {FORMS}")


def default_sqlite_path() -> Path:
    """Return the registry's file in the user's state folder (XDG base directories)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "modelexpress" / "registry.db"
