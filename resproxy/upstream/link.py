"""Owns the shared links of one pool: writing to them, feeding their replies, choosing one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import cython

from resproxy.matching import Expectation, Matcher, Sink
from resproxy.net.plain import PlainSocket
from resproxy.wire.replies import ProtocolError


class Sender(Sink, Protocol):
    """Who sends on a link, and must stop while it has too much to write."""

    def backlog(self, link: Link) -> None:
        """Stop; backlog_over() will be called, unless the link is lost first."""

    def backlog_over(self) -> None:
        """Go on."""


@cython.cclass
class Link:
    """One upstream socket and the order of the replies on it. Ready for use when made.

    limit: unsent bytes above which a sender is told to wait.
    """

    transport: PlainSocket = cython.declare(object, visibility="readonly")
    matcher: Matcher = cython.declare(object, visibility="readonly")
    alive = cython.declare(cython.bint, visibility="readonly")
    _limit: cython.Py_ssize_t
    _on_lost: Callable[[Link, str], None]
    _waiting: list[Sender]

    def __init__(self, limit: cython.Py_ssize_t, on_lost: Callable[[Link, str], None]) -> None:
        self.matcher = Matcher()
        self.alive = True
        self._limit = limit
        self._on_lost = on_lost
        self._waiting = []

    def attach(self, transport: PlainSocket) -> None:
        """Begin: transport's handler is this link."""
        self.transport = transport
        transport.resume()

    def send(
        self,
        sender: Sender,
        data: bytes | bytearray,
        start: cython.Py_ssize_t,
        end: cython.Py_ssize_t,
        count: cython.Py_ssize_t,
    ) -> Expectation:
        """Write data[start:end], which is `count` whole commands, at the end of this turn."""
        entry: Any = self.matcher.expect(sender, count)
        pending: cython.Py_ssize_t = self.transport.queue(data, start, end)
        if pending > self._limit:
            self._waiting.append(sender)
            sender.backlog(self)
        return entry

    def received(self, data: bytearray, size: int) -> None:
        """Bytes from the server."""
        try:
            self.matcher.feed(data, size)
        except ProtocolError as exc:
            self.lost(f"a malformed reply: {exc}")

    def eof(self) -> None:
        """The server closed the connection."""
        self.lost("the server closed the connection")

    def lost(self, reason: str) -> None:
        """The connection cannot be used any more: every waiter is told, then the pool."""
        if self.alive:
            self.alive = False
            self.transport.close()
            self._waiting.clear()
            self.matcher.fail(reason)
            self._on_lost(self, reason)

    def drained(self) -> None:
        """All is written: who had to wait may go on."""
        if self._waiting:
            waiting: list[Sender] = self._waiting
            self._waiting = []
            for sender in waiting:
                sender.backlog_over()

    def finished(self) -> None:
        """Never: a link is closed at once."""

    def close(self) -> None:
        """Close an idle link on purpose; the pool is not told."""
        self.alive = False
        self.transport.close()
        self.matcher.fail("the proxy closed the link")


@cython.cclass
class Links:
    """The links of a pool that are ready, and the choice among them."""

    ready: list[Link] = cython.declare(list, visibility="readonly")
    used = cython.declare(cython.bint, visibility="public")  # since somebody last set it to False
    _current: Any

    def __init__(self) -> None:
        self.ready = []
        self.used = False
        self._current = None

    def add(self, link: Link) -> None:
        """A link is ready."""
        self.ready.append(link)

    def remove(self, link: Link) -> None:
        """A link is lost."""
        self.ready.remove(link)
        if self._current is link:
            self._current = None

    def pick(self) -> Link | None:
        """The link for a client that has no replies due; None where none is ready.

        All clients of one turn go onto one link, so that the turn costs one write here and one read
        at the server; each turn takes the link with the fewest replies due.
        """
        current: Any = self._current
        if current is not None and current.transport.queued:
            return current
        self.used = True
        best: Any = None
        least: cython.Py_ssize_t = 0
        due: cython.Py_ssize_t
        for link in self.ready:
            due = link.matcher.due
            if best is None or due < least:
                best = link
                least = due
        self._current = best
        return best
