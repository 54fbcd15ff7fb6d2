"""Owns one Redis server as the proxy sees it: what is known of it, its pools, its pinned links."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

import hiredis

from resproxy import errors
from resproxy.commands.traits import CommandTable
from resproxy.config import Config
from resproxy.net.plain import PlainSocket, Poller
from resproxy.session import Session
from resproxy.upstream.dial import DialError, Step, dial, identity
from resproxy.upstream.pinned import Mode, Owner, Pinned
from resproxy.upstream.pool import Backoff, Pool
from resproxy.wire.requests import BULK_LIMIT, Dialect

log = logging.getLogger(__name__)

# How the proxy's own connections look in the server's CLIENT LIST. A pinned link bears the name
# that its client has given itself, if any.
SHARED_NAME = b"resproxy"
INTERNAL_NAME = b"resproxy-internal"

# CONFIG, COMMAND and CLIENT may be denied by an ACL: the proxy then goes on with what it knows.
_LEARN = (
    Step((b"CLIENT", b"SETNAME", INTERNAL_NAME), required=False),
    Step((b"PING",), required=False),
    Step((b"COMMAND",), required=False),
    Step((b"CONFIG", b"GET", b"proto-max-bulk-len"), required=False),
)


class PinOwner(Owner, Protocol):
    """A client that asks for a pinned link."""

    @property
    def closed(self) -> bool:
        """Whether the client is gone."""

    def pinned_to(self, link: Pinned, mode: Mode) -> None:
        """Here it is."""

    def refuse(self, error: str) -> None:
        """It cannot be had."""


class Question:
    """One command of the proxy's own on the internal link: collects the bytes of its reply."""

    def __init__(self, answered: Callable[[bytes | None], None]) -> None:
        self._answered = answered
        self._reply = bytearray()

    def replies(
        self, data: bytes | bytearray, start: int, end: int, whole: int, after: bytes | None
    ) -> None:
        """A part of the reply."""
        self._reply += memoryview(data)[start:end]
        if whole:
            self._answered(bytes(self._reply))

    def link_lost(self, reason: str, inside: bool) -> None:
        """There will be none."""
        self._answered(None)

    def backlog(self, link: object) -> None:
        """Nothing more is sent by this question anyway."""

    def backlog_over(self) -> None:
        """Likewise."""


class Node:
    """One server. table, dbs, dialect: what is known of it; internal: the proxy's own link."""

    def __init__(self, config: Config, poller: Poller) -> None:
        self.upstream = config.upstream
        self.table = CommandTable.builtin()
        self.dialect = Dialect(self.table.specials)
        self.dbs: set[int] = {config.upstream.db}
        self._config = config
        self._poller = poller
        self._pools: dict[tuple[int, int], Pool] = {}
        self._spare: dict[tuple[int, int], list[Pinned]] = {}
        self._pinned = 0  # links that are pinned, or being opened to be
        self._tasks: set[asyncio.Task[None]] = set()
        self._trimmer: asyncio.TimerHandle | None = None
        self.internal = Pool(
            "internal", 1, self._internal_steps, self.upstream, config, poller, self._learn
        )

    def open(self) -> None:
        """Begin to connect; returns at once."""
        self.internal.open()
        self._trim_later()

    def close(self) -> None:
        """Close every link."""
        if self._trimmer is not None:
            self._trimmer.cancel()
        for task in self._tasks:
            task.cancel()
        for pool in (self.internal, *self._pools.values()):
            pool.close()
        self._close_spares()

    # What is known of the server

    def _internal_steps(self) -> Sequence[Step]:
        return (*identity(self.upstream, 2, 0), *_LEARN)

    def _learn(self, replies: list[object]) -> None:
        _, ping, command, limit = replies[-len(_LEARN) :]
        needs_auth = isinstance(ping, hiredis.ReplyError) and str(ping).startswith("NOAUTH")
        max_bulk = BULK_LIMIT
        try:
            if isinstance(command, list):
                self.table = CommandTable.builtin().completed(command)
            if isinstance(limit, list) and len(limit) == 2:
                max_bulk = int(limit[1])
        except ValueError as exc:
            log.warning("upstream's metadata not understood", extra={"reason": str(exc)})
        # The server may be another one than before: what it can select is found out again.
        self.dbs.clear()
        self.dbs.add(self.upstream.db)
        self.dialect.replace(self.table.specials, max_bulk, needs_auth)
        log.info(
            "upstream connected",
            extra={
                "upstream": self.upstream.display,
                "commands": len(self.table.known or ()),
                "needs_auth": needs_auth,
            },
        )

    def ask(self, command: bytes, answered: Callable[[bytes | None], None]) -> bool:
        """Send one command of the proxy's own; False where the internal link is not there.

        answered gets the raw reply, or None if the link is lost first.
        """
        link = self.internal.links.pick()
        if link is None:
            return False
        link.send(Question(answered), command, 0, len(command), 1)
        return True

    # Shared links

    def pool(self, db: int, resp: int) -> Pool:
        """The pool of this db and RESP version; its links are opened when they are first needed."""
        pool = self._pools.get((db, resp))
        if pool is None:

            def steps() -> Sequence[Step]:
                name = Step((b"CLIENT", b"SETNAME", SHARED_NAME), required=False)
                return (*identity(self.upstream, resp, db), name)

            pool = Pool(
                f"db{db}-resp{resp}",
                self._config.connections,
                steps,
                self.upstream,
                self._config,
                self._poller,
            )
            self._pools[db, resp] = pool
        return pool

    def _trim_later(self) -> None:
        self._trimmer = self._poller.loop.call_later(self._config.pool_idle, self._trim)

    def _trim(self) -> None:
        for pool in self._pools.values():
            if not pool.links.used and pool.idle:
                pool.trim()
            pool.links.used = False
        self._close_spares()
        self._trim_later()

    # Pinned links

    def pin(self, owner: PinOwner, session: Session, mode: Mode) -> None:
        """Give owner a link with its session's state, or refuse it, later or at once."""
        spare = self._spare.get((session.db, session.resp))
        if mode is Mode.FRAME and spare:
            link = spare.pop()
            if link.alive:
                self._pinned += 1
                owner.pinned_to(link, mode)
                return
        if self._pinned >= self._config.max_pinned:
            # Later: a client that asks for many, one after the other, must not recurse.
            text = errors.too_many_pinned(self._config.max_pinned)
            self._poller.loop.call_soon(self._refuse, owner, text)
            return
        self._pinned += 1
        task = asyncio.ensure_future(self._open_pinned(owner, session, mode))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refuse(self, owner: PinOwner, error: str) -> None:
        if not owner.closed:
            owner.refuse(error)

    async def _open_pinned(self, owner: PinOwner, session: Session, mode: Mode) -> None:
        steps = identity(self.upstream, session.resp, session.db)
        if mode is Mode.LIFE:
            if session.name is not None:
                steps.append(Step((b"CLIENT", b"SETNAME", session.name), required=False))
            for attribute, text in (session.lib or {}).items():
                steps.append(Step((b"CLIENT", b"SETINFO", attribute, text), required=False))
        else:
            steps.append(Step((b"CLIENT", b"SETNAME", SHARED_NAME), required=False))
        try:
            sock = await self._dial_patiently(owner, steps)
        except DialError as exc:
            self._pinned -= 1
            wait = self._config.upstream_wait
            self._refuse(owner, errors.unreachable(self.upstream.display, str(exc), wait))
            return
        link = Pinned(self._config.link_backlog)
        link.attach(PlainSocket(sock, self._poller, link))
        if owner.closed:
            link.close()
            self._pinned -= 1
        else:
            owner.pinned_to(link, mode)

    async def _dial_patiently(self, owner: PinOwner, steps: Sequence[Step]) -> socket.socket:
        """Try for upstream_wait, as the clients of a pool would wait. Raises DialError."""
        backoff = Backoff(self._config.backoff_min, self._config.backoff_max)
        deadline = self._poller.loop.time() + self._config.upstream_wait
        while True:
            left = deadline - self._poller.loop.time()
            try:
                sock, _ = await dial(self.upstream, steps, min(self._config.connect_timeout, left))
            except DialError:
                pause = backoff.pause()
                if owner.closed or self._poller.loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
            else:
                return sock

    def unpin(self, link: Pinned, session: Session) -> None:
        """The link is no longer pinned; a clean one that is alive is kept for the next owner."""
        self._pinned -= 1
        if not link.alive:
            return
        spare = self._spare.setdefault((session.db, session.resp), [])
        if len(spare) < self._config.spare_links:
            spare.append(link)
        else:
            link.close()

    def _close_spares(self) -> None:
        for spare in self._spare.values():
            for link in spare:
                link.close()
        self._spare.clear()
