"""Owns the shared links of one pool: writing to them, feeding their replies, choosing one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import cython

from resproxy.matching import Expectation, Matcher, Sink
from resproxy.net.plain import PlainSocket
from resproxy.wire.replies import ProtocolError

# Unsent bytes that are enough for the server to read at once (Redis reads 16 KiB at a time), and
# the replies due that make no difference between two links.
_GATHER = cython.declare(cython.Py_ssize_t, 16 * 1024)
_GATHER_COUNT = cython.declare(cython.Py_ssize_t, 16)
_GATHER_DUE = cython.declare(cython.Py_ssize_t, 32)


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
    _gathered: cython.Py_ssize_t  # commands since the last flush
    _on_lost: Callable[[Link, str], None]
    _waiting: list[Sender]

    def __init__(self, limit: cython.Py_ssize_t, on_lost: Callable[[Link, str], None]) -> None:
        self.matcher = Matcher()
        self.alive = True
        self._limit = limit
        self._gathered = 0
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
        """Write data[start:end], which is `count` whole commands, soon.

        That is at the end of this turn of the loop where no reply is due. Otherwise the server has
        work from this link, and what comes meanwhile is gathered until it has answered, or until
        there is enough for it to read at once: batches grow with the load, and nothing waits for
        a timer.
        """
        idle: cython.bint = self.matcher.due == 0
        entry: Any = self.matcher.expect(sender, count)
        pending: cython.Py_ssize_t = self.transport.queue(data, start, end)
        self._gathered += count
        if idle or self._gathered >= _GATHER_COUNT or pending > _GATHER:
            self._gathered = 0
            self.transport.flush_at_end_of_turn()
        if pending > self._limit:
            self._waiting.append(sender)
            sender.backlog(self)
        return entry

    def received(self, data: bytearray, size: int) -> None:
        """Bytes from the server."""
        if self.transport.pending:
            self._gathered = 0
            # First, so that the server works while its replies are passed on.
            self.transport.flush()
        try:
            self.matcher.feed(data, size)
        except ProtocolError as exc:
            self.lost(f"a malformed reply: {exc}")
            return
        if self.transport.pending:
            self._gathered = 0
            self.transport.flush_at_end_of_turn()

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
    _at: cython.Py_ssize_t  # of the link picked last

    def __init__(self) -> None:
        self.ready = []
        self.used = False
        self._at = 0

    def add(self, link: Link) -> None:
        """A link is ready."""
        self.ready.append(link)

    def remove(self, link: Link) -> None:
        """A link is lost."""
        self.ready.remove(link)

    def pick(self) -> Link | None:
        """The link for a client that has no replies due; None where none is ready.

        Clients are put together on one link as long as that gathers, so that their commands cost
        one write here and one read at the server. The next link is an idle one; where none is, the
        one that has had its turn longest ago, whose answer should be the first to come, unless far
        more is due on it than elsewhere.
        """
        ready: list[Link] = self.ready
        size: cython.Py_ssize_t = len(ready)
        at: cython.Py_ssize_t = self._at
        least: cython.Py_ssize_t
        due: cython.Py_ssize_t
        link: Any
        if size == 0:
            return None
        self.used = True
        if at < size and 0 < ready[at].transport.pending <= _GATHER:
            return ready[at]
        least = min([link.matcher.due for link in ready])
        while True:
            at = at + 1 if at + 1 < size else 0
            link = ready[at]
            due = link.matcher.due
            if due == least or (least > 0 and due <= 2 * least + _GATHER_DUE):
                self._at = at
                return link
