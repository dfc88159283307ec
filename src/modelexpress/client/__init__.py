"""The registry client, blocking and for asyncio: publish, list, get, update."""

from modelexpress.client.aio import AsyncClient
from modelexpress.client.sync import Client

__all__ = ["AsyncClient", "Client"]
