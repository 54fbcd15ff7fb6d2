"""Owns what all clients of a server share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from resproxy.config import Config
from resproxy.net.plain import Poller
from resproxy.session import FIRST_ID
from resproxy.upstream.node import Node

if TYPE_CHECKING:
    from resproxy.client import Client


class Context:
    """The configuration, the poller, the node, and the clients that are connected."""

    def __init__(self, config: Config, poller: Poller, node: Node) -> None:
        self.config = config
        self.poller = poller
        self.node = node
        self.clients: set[Client] = set()
        self._last_id = FIRST_ID
        self._empty: asyncio.Event | None = None

    def next_id(self) -> int:
        """An id that no client had before."""
        self._last_id += 1
        return self._last_id

    def left(self, client: Client) -> None:
        """The client is gone."""
        self.clients.discard(client)
        if self._empty is not None and not self.clients:
            self._empty.set()

    async def all_left(self) -> None:
        """Wait until no client is there."""
        self._empty = asyncio.Event()
        if self.clients:
            await self._empty.wait()
