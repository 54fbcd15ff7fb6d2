"""Owns the order of replies: a link's FIFO of expectations, and which client each reply is for.

Order is the only key. Nothing is removed from the middle of the FIFO: a client that has left stays
in it as a tombstone, and what arrives for it is read and dropped (by its sink). A run of commands
of one client is one entry with a count.
"""

from __future__ import annotations

from typing import Protocol

import cython

from resproxy.wire.replies import ProtocolError, ReplyScanner


class Sink(Protocol):
    """Who waits for replies: a client, or the proxy itself."""

    def replies(
        self, data: bytes | bytearray, start: int, end: int, whole: int, after: bytes | None
    ) -> None:
        """Take data[start:end], in which `whole` replies end.

        The last of them may be incomplete as yet. after: local replies whose place is right behind
        these. Must not raise, and must not keep `data`, whose bytes will be overwritten.
        """

    def link_lost(self, reason: str, inside: bool) -> None:
        """The replies still due will never come; inside: one of them has been passed on in part."""


@cython.freelist(256)
@cython.cclass
class Expectation:
    """An entry of the FIFO: `count` replies due to `sink`, then the local bytes `after`."""

    sink: Sink = cython.declare(object, visibility="readonly")
    count = cython.declare(cython.Py_ssize_t, visibility="readonly")
    after: bytes | None = cython.declare(bytes, visibility="readonly")
    _next: Expectation | None

    def __init__(self, sink: Sink, count: cython.Py_ssize_t) -> None:
        self.sink = sink
        self.count = count
        self.after = None
        self._next = None

    def follow(self, local: bytes) -> None:
        """Put local reply bytes behind the last reply of this entry."""
        self.after = local if self.after is None else self.after + local


@cython.cclass
class Matcher:
    """The FIFO of one link. due: replies that have not wholly arrived."""

    due = cython.declare(cython.Py_ssize_t, visibility="readonly")
    _head: Expectation | None
    _tail: Expectation | None
    _scanner: ReplyScanner

    def __init__(self) -> None:
        self.due = 0
        self._head = self._tail = None
        self._scanner = ReplyScanner()

    def expect(self, sink: Sink, count: cython.Py_ssize_t) -> Expectation:
        """Queue `count` (>= 1) replies for sink; call in the order in which bytes are written."""
        self.due += count
        tail: Expectation | None = self._tail
        if tail is not None and tail.sink is sink and tail.after is None:
            tail.count += count
            return tail
        entry: Expectation = Expectation(sink, count)
        if tail is None:
            self._head = entry
        else:
            tail._next = entry
        self._tail = entry
        return entry

    def feed(self, data: bytes | bytearray, size: cython.Py_ssize_t) -> None:
        """Give data[:size], the link's next bytes, to whom they belong.

        Raises ProtocolError for a malformed reply and for one that nobody waits for; the link is
        then at an unknown offset, and fail() must follow.
        """
        scanner: ReplyScanner = self._scanner
        entry: Expectation | None
        at: cython.Py_ssize_t = 0
        end: cython.Py_ssize_t
        whole: cython.Py_ssize_t
        after: bytes | None
        while at < size:
            entry = self._head
            end = scanner.scan(data, at, size, 0 if entry is None else entry.count)
            if scanner.push:
                # Nothing that makes a server push is ever sent on a shared link.
                at = end
                continue
            if entry is None:
                raise ProtocolError("a reply that nobody waits for")
            whole = scanner.whole
            entry.count -= whole
            self.due -= whole
            after = None
            if entry.count == 0:
                after = entry.after
                self._head = entry._next
                # Its client may hold it for long: it must not hold all that came later.
                entry._next = None
                if self._head is None:
                    self._tail = None
            entry.sink.replies(data, at, end, whole, after)
            at = end

    def fail(self, reason: str) -> None:
        """The link is gone: tell the sink of every entry, oldest first, and forget them."""
        entry: Expectation | None = self._head
        inside: bool = self._scanner.inside and not self._scanner.push
        self._head = self._tail = None
        self.due = 0
        while entry is not None:
            entry.sink.link_lost(reason, inside)
            inside = False
            following: Expectation | None = entry._next
            entry._next = None
            entry = following
