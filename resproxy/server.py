"""Owns the running proxy: listeners, clients and node brought together, and the orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket

import uvloop

from resproxy import errors
from resproxy.client import Client
from resproxy.compiled import is_compiled
from resproxy.config import Config
from resproxy.context import Context
from resproxy.net.listen import Listener, ListenError
from resproxy.net.plain import Poller
from resproxy.upstream.node import Node

log = logging.getLogger(__name__)

# Descriptors beside those of clients: links, listeners, the loop's own, the standard three.
_SPARE_DESCRIPTORS = 64


def serve(config: Config) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status. Blocks."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(Server(config).run())
    except ListenError as exc:
        log.error(str(exc))  # noqa: TRY400 - the text says it all
        return 1


class Server:
    """One proxy process."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._listeners: list[Listener] = []
        self._stopping = asyncio.Event()
        self._refused = False

    async def run(self) -> int:
        """Listen, serve, and end when told to. Raises ListenError."""
        loop = asyncio.get_running_loop()
        config = self._config
        _raise_descriptor_limit(config)
        poller = Poller(loop, config.receive_buffer)
        node = Node(config, poller)
        context = self._context = Context(config, poller, node)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        try:
            for address in config.listen:
                self._listeners.append(Listener(address, self._accepted))
            node.open()
            for listener in self._listeners:
                listener.start(loop)
            log.info(
                "ready",
                extra={
                    "listen": ",".join(listener.display for listener in self._listeners),
                    "upstream": config.upstream.display,
                    "connections": config.connections,
                    "compiled": is_compiled(),
                },
            )
            await self._stopping.wait()
        finally:
            for listener in self._listeners:
                listener.close()
        log.info("stopping", extra={"clients": len(context.clients)})
        await self._drain(context)
        node.close()
        poller.close()
        log.info("stopped")
        return 0

    def _accepted(self, sock: socket.SocketType) -> None:
        context = self._context
        if len(context.clients) >= self._config.max_clients:
            if not self._refused:
                self._refused = True
                log.warning("clients refused", extra={"max_clients": self._config.max_clients})
            with contextlib.suppress(OSError):
                sock.send(errors.MAX_CLIENTS)
            sock.close()
            return
        context.clients.add(Client(sock, context))

    async def _drain(self, context: Context) -> None:
        """Let what is in flight finish, for at most drain_timeout; idle clients end at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_timeout):
                for client in list(context.clients):
                    client.drain()
                await context.all_left()
        if context.clients:
            log.warning("clients cut off", extra={"clients": len(context.clients)})
        for client in list(context.clients):
            client.close()


def _raise_descriptor_limit(config: Config) -> None:
    """One descriptor per client, link and pinned link: take what the hard limit allows."""
    wanted = config.max_clients + config.max_pinned + config.connections + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning(
            "file descriptor limit is low: raise `ulimit -n` or lower max_clients",
            extra={"limit": allowed, "wanted": wanted},
        )
