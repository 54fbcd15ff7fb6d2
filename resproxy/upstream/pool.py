"""Owns keeping a pool's links open: dialling, backing off, and who waits meanwhile."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from resproxy import errors
from resproxy.config import Config, Upstream
from resproxy.net.plain import PlainSocket, Poller
from resproxy.upstream.dial import DialError, Step, dial
from resproxy.upstream.link import Link, Links

log = logging.getLogger(__name__)


# Bytes of an empty output buffer that a link keeps: it is filled again in the next turn.
_KEEP = 1024 * 1024


class Waiter(Protocol):
    """A client that cannot go on without a link."""

    def link_ready(self) -> None:
        """Try again."""

    def refuse(self, error: str) -> None:
        """No link came in time: answer what waits with this error."""


class Backoff:
    """Pauses between attempts: doubled each time, with full jitter above half of it."""

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest = shortest
        self._longest = longest
        self._next = shortest

    def reset(self) -> None:
        """The last attempt succeeded."""
        self._next = self._shortest

    def pause(self) -> float:
        """Seconds to wait before the next attempt."""
        pause = self._next
        self._next = min(self._longest, 2 * pause)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


class Pool:
    """The links for one (db, RESP version), opened together when somebody first needs one."""

    def __init__(
        self,
        name: str,
        size: int,
        steps: Callable[[], Sequence[Step]],
        upstream: Upstream,
        config: Config,
        poller: Poller,
        connected: Callable[[list[object]], None] | None = None,
    ) -> None:
        """name: for logs. steps: the handshake of each link. connected: told of its replies."""
        self.name = name
        self.links = Links()
        self._size = size
        self._steps = steps
        self._upstream = upstream
        self._config = config
        self._poller = poller
        self._connected = connected
        self._filling: asyncio.Task[None] | None = None
        self._failure = "not tried yet"
        self._waiting: dict[Waiter, float] = {}  # to the time of the refusal, oldest first
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def open(self) -> None:
        """Begin to open what links are missing; returns at once."""
        if not self._closed and (self._filling is None or self._filling.done()):
            self._filling = asyncio.ensure_future(self._fill())

    def close(self) -> None:
        """Close all links and open none any more."""
        self._closed = True
        self.trim()
        if self._timer is not None:
            self._timer.cancel()

    def trim(self) -> None:
        """Close all links; they are opened again when somebody needs one."""
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None
        for link in list(self.links.ready):
            self.links.remove(link)
            link.close()

    @property
    def idle(self) -> bool:
        """Whether nobody waits for a link or for a reply."""
        return not self._waiting and not any(link.matcher.due for link in self.links.ready)

    def wait(self, waiter: Waiter) -> None:
        """Call waiter.link_ready() when a link is there, or refuse() after `upstream_wait`."""
        loop = self._poller.loop
        self._waiting[waiter] = loop.time() + self._config.upstream_wait
        if self._timer is None:
            self._timer = loop.call_later(self._config.upstream_wait, self._expire)
        self.open()

    def forget(self, waiter: Waiter) -> None:
        """The waiter has left."""
        self._waiting.pop(waiter, None)

    def _expire(self) -> None:
        self._timer = None
        loop = self._poller.loop
        now = loop.time()
        due = [waiter for waiter, deadline in self._waiting.items() if deadline <= now]
        error = errors.unreachable(
            self._upstream.display, self._failure, self._config.upstream_wait
        )
        for waiter in due:
            del self._waiting[waiter]
        for waiter in due:
            waiter.refuse(error)
        if self._waiting and self._timer is None:
            following = next(iter(self._waiting.values()))
            self._timer = loop.call_at(following, self._expire)

    async def _fill(self) -> None:
        backoff = Backoff(self._config.backoff_min, self._config.backoff_max)
        reported = False
        while len(self.links.ready) < self._size:
            try:
                await self._open_one()
            except DialError as exc:
                self._failure = str(exc)
                if not reported:
                    reported = True
                    log.warning(
                        "upstream unreachable, trying on",
                        extra={
                            "upstream": self._upstream.display,
                            "pool": self.name,
                            "reason": self._failure,
                        },
                    )
                await asyncio.sleep(backoff.pause())
                continue
            backoff.reset()
            if reported:
                reported = False
                log.warning(
                    "upstream reachable again",
                    extra={"upstream": self._upstream.display, "pool": self.name},
                )

    async def _open_one(self) -> None:
        steps = self._steps()
        sock, replies = await dial(self._upstream, steps, self._config.connect_timeout)
        link = Link(self._config.link_backlog, self._lost)
        link.attach(PlainSocket(sock, self._poller, link, _KEEP))
        self.links.add(link)
        if self._connected is not None:
            self._connected(replies)
        waiting = list(self._waiting)
        self._waiting.clear()
        for waiter in waiting:
            waiter.link_ready()

    def _lost(self, link: Link, reason: str) -> None:
        self._failure = reason
        self.links.remove(link)
        log.info(
            "link lost",
            extra={"upstream": self._upstream.display, "pool": self.name, "reason": reason},
        )
        self.open()
