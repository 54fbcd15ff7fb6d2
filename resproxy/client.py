"""Owns one accepted connection: its bytes in, along their routes, and its replies out, in order.

While replies are due the client stays on one link, so they arrive in its own order; what is
answered locally goes right behind the last of them. Whatever has to wait (for a link, for an answer
on the internal link, until no reply is due) stops the processing of the client's input where it is,
and with it the reading from its socket.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import cython
import hiredis

from resproxy import errors
from resproxy.commands.traits import Trait
from resproxy.context import Context
from resproxy.net.plain import PlainSocket
from resproxy.session import Decision, Route, Session
from resproxy.upstream.link import Link, Links
from resproxy.upstream.pinned import Mode, Pinned
from resproxy.upstream.pool import Pool
from resproxy.wire import encode
from resproxy.wire.inline import split_inline
from resproxy.wire.requests import RequestScanner, Stop

log = logging.getLogger(__name__)


class Blocked(IntEnum):
    """What the processing of a client's input waits for."""

    NO = 0
    SETTLE = 1  #: until no reply is due
    LINK = 2  #: for a link of its pool, or the internal one
    ANSWER = 3  #: for an answer on the internal link
    PIN = 4  #: for a pinned link; or it has one, and that gets the input
    BACKLOG = 5  #: until its link has written what it was given
    GOODBYE = 6  #: for nothing: the rest of the input is ignored, due replies are still delivered


_NO = cython.declare(cython.int, Blocked.NO)
_SETTLE = cython.declare(cython.int, Blocked.SETTLE)
_GOODBYE = cython.declare(cython.int, Blocked.GOODBYE)

_MORE = cython.declare(cython.int, Stop.MORE)


@cython.cclass
class Client:
    """One client. due: its replies that have not wholly arrived."""

    transport: PlainSocket = cython.declare(object, visibility="readonly")
    session: Session = cython.declare(object, visibility="readonly")
    due = cython.declare(cython.Py_ssize_t, visibility="readonly")
    closed = cython.declare(cython.bint, visibility="readonly")
    blocked = cython.declare(cython.int, visibility="readonly")
    pinned: Pinned | None = cython.declare(object, visibility="readonly")

    _context: Context
    _scanner: RequestScanner
    _pool: Pool
    _links: Links  # of that pool: what pick() is asked of
    _link: Any  # the Link that replies are due on, or the last one
    _last: Any  # the Expectation of the last reply due
    _pending: bytearray | None  # input that is not processed
    _waiting_in: Pool | None
    _refusal: bytes | None  # the error that answers what would need a link
    _refuse_one: cython.bint  # only the next such command
    _processing: cython.bint
    _ended: cython.bint  # the client will send no more
    _watched: cython.bint  # whether it takes its replies
    _pause: cython.Py_ssize_t
    _limit: cython.Py_ssize_t

    def __init__(self, sock: socket.SocketType, context: Context) -> None:
        """Serve the connected, non-blocking socket until it closes."""
        self._context = context
        node = context.node
        self.session = Session(context.next_id(), node.upstream.db, node, decode)
        self._scanner = RequestScanner(node.dialect, context.config.large_request)
        self._pause = context.config.output_pause
        self._limit = context.config.output_limit
        self.due = 0
        self.blocked = Blocked.NO
        self.closed = self._ended = self._processing = self._watched = False
        self.pinned = self._link = self._last = self._waiting_in = None
        self._pending = self._refusal = None
        self._refuse_one = False
        self._use_pool()
        self.transport = PlainSocket(sock, context.poller, self)
        self.transport.resume()

    def _use_pool(self) -> None:
        self._pool = self._context.node.pool(self.session.db, self.session.resp)
        self._links = self._pool.links

    # Bytes from the client

    def received(self, data: bytearray, size: cython.Py_ssize_t) -> None:
        """Bytes from the client."""
        used: cython.Py_ssize_t
        if self.pinned is not None:
            self.pinned.from_client(data, size)
        elif self._pending is not None or self.blocked != _NO:
            if self.blocked != _GOODBYE:
                if self._pending is None:
                    self._pending = bytearray()
                self._pending += memoryview(data)[:size]
                self._resume()
        else:
            self._processing = True
            used = self._process(data, size)
            self._processing = False
            if used < size and self.blocked != _GOODBYE:
                self._pending = bytearray(memoryview(data)[used:size])
            self._after_process()

    def _resume(self) -> None:
        """Process what input is there, unless that is blocked or already going on."""
        pending: bytearray | None = self._pending
        used: cython.Py_ssize_t
        if self.blocked != _NO or self._processing or self.closed:
            return
        if pending is not None:
            self._processing = True
            used = self._process(pending, len(pending))
            self._processing = False
            if used == len(pending) or self.blocked == _GOODBYE or self.closed:
                self._pending = None
            else:
                del pending[:used]
        self._after_process()

    def _after_process(self) -> None:
        if self.closed:
            return
        if self.blocked == Blocked.PIN:
            self._ask_for_pin()
        elif self.blocked != _NO:
            self.transport.pause()
            if self.blocked == _GOODBYE and self.due == 0:
                self._finish()
        elif self._ended and self.due == 0:
            self._finish()

    @cython.cfunc
    def _process(self, data: bytes | bytearray, size: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """Send data[:size] along its routes; returns how much of it has been dealt with."""
        at: cython.Py_ssize_t = 0
        end: cython.Py_ssize_t
        stop: cython.int
        scanner: RequestScanner = self._scanner
        while True:
            stop = scanner.scan(data, at, size)
            end = scanner.end
            if end > at:
                if not self._forward(data, at, end, scanner.count):
                    scanner.rewind()
                    return at
                at = end
            if stop == _MORE:
                return at
            scanner.rewind()
            if self.blocked == _NO and not self.closed:
                at = self._stopped(stop, data, at, size)
            if self.blocked != _NO or self.closed:
                scanner.rewind()
                return at

    @cython.cfunc
    def _forward(
        self,
        data: bytes | bytearray,
        start: cython.Py_ssize_t,
        end: cython.Py_ssize_t,
        count: cython.Py_ssize_t,
    ) -> cython.bint:
        """Send `count` whole commands on a shared link; False where there is none yet."""
        link: Any
        if self._refusal is not None:
            self._answer(self._refusal * count)
            return True
        if self.due == 0:
            link = self._links.pick()
            if link is None:
                self._wait_in(self._pool)
                return False
            self._link = link
        self.due += count
        self._last = self._link.send(self, data, start, end, count)
        return True

    def _stopped(self, stop: int, data: bytes | bytearray, at: int, size: int) -> int:
        """Deal with what is not a plain command; returns where to go on."""
        scanner: RequestScanner = self._scanner
        following: int = scanner.next
        if stop == Stop.EMPTY:
            return following
        if stop == Stop.ERROR:
            self._answer(encode.error(b"ERR " + scanner.error))
            self.blocked = Blocked.GOODBYE
            return size
        if stop in (Stop.LARGE, Stop.ODD):
            return self._pin(at)
        frame: bytes = bytes(memoryview(data)[at:following])
        trait: int = scanner.trait
        if stop == Stop.INLINE:
            arguments = split_inline(frame[:-1])
            if arguments is None:
                self._answer(encode.error(b"ERR " + errors.UNBALANCED))
                self.blocked = Blocked.GOODBYE
                return size
            if not arguments:
                return following
            # Re-encoded: how a server splits a line is not worth a shared link's framing.
            frame = encode.command(*arguments)
            trait = self._context.node.dialect.trait(arguments[0])
            if trait == Trait.PLAIN:
                return following if self._forward(frame, 0, len(frame), 1) else at
            if trait == Trait.MULTI:
                return self._pin(at)
        else:
            arguments = _arguments(frame)
        return self._special(trait, arguments, frame, data, at, following, size)

    def _special(
        self,
        trait: int,
        arguments: list[bytes],
        frame: bytes,
        data: bytes | bytearray,
        at: int,
        following: int,
        size: int,
    ) -> int:
        decision: Decision = self.session.route(trait, arguments)
        if decision.settle and self.due:
            self.blocked = Blocked.SETTLE
            return at
        match decision.route:
            case Route.SHARED:
                return following if self._forward(frame, 0, len(frame), 1) else at
            case Route.TRANSACTION:
                return self._transaction(data, at, following, size)
            case Route.LOCAL:
                return self._local(decision, at, following)
            case _:
                alone = trait in (Trait.BLOCKING, Trait.XREAD, Trait.SCRIPT)
                return self._pin(at, following if alone else 0)

    def _transaction(self, data: bytes | bytearray, at: int, following: int, size: int) -> int:
        """MULTI was seen at `at`: send it and all up to EXEC as one write, if all of it is here.

        Only plain commands may be between: anything else would leave its mark on a shared link,
        and DISCARD, unlike EXEC, leaves the transaction open where an ACL forbids it.
        """
        scanner: RequestScanner = self._scanner
        stop = scanner.scan(data, following, size)
        whole = stop == Stop.COMMAND and scanner.trait == Trait.EXEC and scanner.argc == 1
        count, end = scanner.count + 2, scanner.next
        scanner.rewind()
        if not whole:
            return self._pin(at)
        return end if self._forward(data, at, end, count) else at

    def _local(self, decision: Decision, at: int, following: int) -> int:
        if decision.ask is None or decision.answer is None:
            if decision.apply is not None:
                decision.apply()
                self._use_pool()
            assert decision.reply is not None
            self._answer(decision.reply)
            if decision.close:
                self.blocked = Blocked.GOODBYE
            return following
        if self._refusal is not None:
            self._answer(self._refusal)
            return following
        node = self._context.node
        if not node.ask(decision.ask, self._answered(decision.answer)):
            self._wait_in(node.internal)
            return at
        self.blocked = Blocked.ANSWER
        return following

    def _answered(self, answer: Callable[[bytes], bytes]) -> Callable[[bytes | None], None]:
        def answered(reply: bytes | None) -> None:
            if self.closed:
                return
            if reply is None:
                self.close()  # as when a direct connection is lost
                return
            text = answer(reply)
            self._use_pool()
            self._answer(text)
            self._go_on()

        return answered

    def _pin(self, at: int, following: int = 0) -> int:
        """Everything from `at` on is for a link of this client's own.

        following: behind the command, where it can be refused and the next ones served all the
        same. Otherwise a refusal ends the connection: what follows relies on what was refused, as
        after MULTI, WATCH or AUTH, or is the rest of a frame that is not whole.
        """
        if self.due:
            self.blocked = Blocked.SETTLE
        elif self._refusal is not None:
            self._answer(self._refusal)
            if self._refuse_one:
                self._refusal = None
            if following:
                return following
            self.blocked = Blocked.GOODBYE
        else:
            self.blocked = Blocked.PIN
        return at

    # Waiting, and going on

    def _wait_in(self, pool: Pool) -> None:
        self.blocked = Blocked.LINK
        self._waiting_in = pool
        pool.wait(self)

    def _go_on(self) -> None:
        if not self.closed and self.blocked != _GOODBYE:
            self.blocked = Blocked.NO
            self._resume()
            self._read_on()

    def _read_on(self) -> None:
        goes_on: cython.bint = self.blocked == _NO and not self.closed and not self._ended
        if goes_on and self.transport.pending <= self._pause:
            self.transport.resume()

    def link_ready(self) -> None:
        """The pool has a link."""
        self._waiting_in = None
        self._go_on()

    def refuse(self, error: str) -> None:
        """There is no link: what is here is answered with the error.

        That is every command that waited for a shared link, but only the one that needed a link of
        its own.
        """
        self._waiting_in = None
        self._refusal = encode.error(error)
        self._refuse_one = self.blocked == Blocked.PIN
        self.blocked = Blocked.NO
        self._resume()
        self._refusal = None
        if self.blocked == _NO:
            self._go_on()

    def backlog(self, link: Link) -> None:
        """The link has too much to write."""
        if self.blocked == _NO:
            self.blocked = Blocked.BACKLOG
            self.transport.pause()

    def backlog_over(self) -> None:
        """The link has written it."""
        if self.blocked == Blocked.BACKLOG:
            self._go_on()

    # A link of its own

    def _ask_for_pin(self) -> None:
        self.transport.pause()
        session: Session = self.session
        large = self._scanner_says_large()
        self._context.node.pin(self, session, Mode.FRAME if large else Mode.LIFE)

    def _scanner_says_large(self) -> bool:
        """Whether the input begins with a plain command that is only too large."""
        scanner: RequestScanner = self._scanner
        pending: bytearray = self._pending or bytearray()
        stop = scanner.scan(pending, 0, len(pending))
        large = stop == Stop.LARGE and scanner.count == 0 and scanner.trait == Trait.PLAIN
        scanner.rewind()
        return large

    def pinned_to(self, link: Pinned, mode: Mode) -> None:
        """Here is the link; everything goes there from now on."""
        link.give(self, mode)
        self.pinned = link
        pending: bytearray = self._pending or bytearray()
        self._pending = None
        link.from_client(pending, len(pending))
        if self._ended:
            link.client_eof()
        elif not link.asked:
            self.transport.resume()

    def unpinned(self, rest: bytes) -> None:
        """The frame has been answered: back to the shared links."""
        self._unpin()
        self._pending = bytearray(rest) if rest else None
        self._go_on()

    def upstream_closed(self, reason: str) -> None:
        """The pinned link is over, and so is this connection."""
        self._unpin()
        self._finish()

    # Bytes to the client

    def _answer(self, reply: bytes) -> None:
        """A reply of the proxy's own, behind those that are due."""
        if self.due:
            self._last.follow(reply)
        else:
            self._wrote(self.transport.write(reply, 0, len(reply)))

    def replies(
        self,
        data: bytes | bytearray,
        start: cython.Py_ssize_t,
        end: cython.Py_ssize_t,
        whole: cython.Py_ssize_t,
        after: bytes | None,
    ) -> None:
        """Bytes from the link: in them end `whole` replies; then `after` has its place."""
        pending: cython.Py_ssize_t
        self.due -= whole
        if self.closed:
            return
        pending = self.transport.write(data, start, end)
        if after is not None:
            pending = self.transport.write(after, 0, len(after))
        if pending:
            self._wrote(pending)
        if self.due == 0 and (self.blocked != _NO or self._ended):
            self._settled()

    def _settled(self) -> None:
        if self.blocked == _SETTLE:
            self._go_on()
        elif self.blocked == _GOODBYE or (self._ended and self.blocked == _NO):
            self._finish()

    def _wrote(self, pending: int) -> None:
        if pending > self._limit:
            self._give_up("output_limit", self._limit)
        elif pending > self._pause:
            self.transport.pause()
            if not self._watched:
                self._watched = True
                self._watch()

    def _watch(self) -> None:
        """While it is not read from, look whether it takes what it has asked for.

        It may write on and on before it reads anything, and then both would wait for ever.
        """
        config = self._context.config
        loop = self._context.poller.loop
        loop.call_later(config.output_stall, self._look, self.transport.pending)

    def _look(self, before: int) -> None:
        if self.closed or self.transport.pending == 0:
            self._watched = False
        elif self.transport.pending >= before:
            self._give_up("output_stall", self._context.config.output_stall)
        else:
            self._watch()

    def _give_up(self, option: str, bound: float) -> None:
        log.warning(
            "client closed: it does not read its replies",
            extra={"client": self.session.id, "unsent": self.transport.pending, option: bound},
        )
        self.close()

    def drained(self) -> None:
        """The client has taken all that was written."""
        if self.pinned is not None:
            self.pinned.client_drained()
        else:
            self._read_on()

    # The end

    def eof(self) -> None:
        """The client sends no more; what it is owed is still delivered."""
        self._ended = True
        if self.pinned is not None:
            self.pinned.client_eof()
            return
        if self.due == 0 and self.blocked == _NO:
            self._finish()

    def drain(self) -> None:
        """The proxy stops: read no more, finish what is in flight, and close."""
        self.transport.pause()
        if not self._ended and not self.closed:
            self.eof()

    def finished(self) -> None:
        """What was written before the end has left, and the socket is closed."""
        self._context.left(self)

    def lost(self, reason: str) -> None:
        """The connection broke."""
        self.close()

    def link_lost(self, reason: str, inside: bool) -> None:
        """The link died with replies due: this connection ends, as a direct one would."""
        self.due = 0
        if not self.closed:
            self._finish()

    def _finish(self) -> None:
        """Close when what has been written has left."""
        self._leave()
        if self.transport.finish():
            self._context.left(self)

    def close(self) -> None:
        """Close at once. Replies still due become tombstones in their link's FIFO."""
        if not self.closed:
            self._leave()
        self.transport.close()
        self._context.left(self)

    def _leave(self) -> None:
        self.closed = True
        self._pending = self._last = self._link = None
        if self._waiting_in is not None:
            self._waiting_in.forget(self)
            self._waiting_in = None
        if self.pinned is not None:
            self.pinned.client_lost()
            self._unpin()

    def _unpin(self) -> None:
        link: Pinned | None = self.pinned
        if link is not None:
            self.pinned = None
            self._context.node.unpin(link, self.session)


def decode(reply: bytes) -> Any:
    """One whole reply as Python objects."""
    reader = hiredis.Reader()
    reader.feed(reply)
    return reader.gets()


def _arguments(frame: bytes) -> list[bytes]:
    arguments: list[bytes] = decode(frame)
    return arguments
