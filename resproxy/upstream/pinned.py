"""Owns pinned links: one client's bytes relayed to a connection of its own, and back.

Bytes are passed on as they come, in both directions and in any state, with backpressure, so that
everything is as on a direct connection: streams of pushes, half-closed sockets, values of any size.
A link is pinned either for the rest of the client's life, or for one frame that is too large to be
buffered; after its reply that link is clean, and the client goes back to the shared links.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Protocol

from resproxy.net.plain import PlainSocket
from resproxy.wire.replies import ProtocolError, ReplyScanner


class Mode(Enum):
    """How long a link is pinned."""

    LIFE = auto()
    FRAME = auto()


class Owner(Protocol):
    """The client that a link is pinned to."""

    transport: PlainSocket

    def unpinned(self, rest: bytes) -> None:
        """The frame has been answered; rest: what came from the client behind it."""

    def upstream_closed(self, reason: str) -> None:
        """The server ended the connection; everything it sent has been passed on."""


class Pinned:
    """One pinned link, or a spare one that has no owner.

    limit: unsent bytes, each way, at which the other side is paused. asked: the frame that it is
    pinned for has wholly been passed on.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._owner: Owner | None = None
        self._mode = Mode.LIFE
        self._request = ReplyScanner()
        self._reply = ReplyScanner()
        self.asked = False
        self._rest = bytearray()
        self._ended = False  # the client will send no more
        self.alive = True

    def attach(self, transport: PlainSocket) -> None:
        """Begin: transport's handler is this link."""
        self.transport = transport
        transport.resume()

    def give(self, owner: Owner, mode: Mode) -> None:
        """Pin the link to owner; from_client() brings its bytes."""
        self._owner = owner
        self._mode = mode
        self.asked = False
        self._request = ReplyScanner()
        self._reply = ReplyScanner()

    # The client's side

    def from_client(self, data: bytes | bytearray, size: int) -> None:
        """Pass on data[:size]; in FRAME mode as far as the frame goes."""
        owner = self._owner
        if owner is None or not self.alive:
            return
        end = size
        if self._mode is Mode.FRAME:
            end = self._frame_end(data, size)
            self._rest += memoryview(data)[end:size]
        if end and self.transport.write(data, 0, end) > self._limit:
            owner.transport.pause()
        if self.asked:
            owner.transport.pause()

    def _frame_end(self, data: bytes | bytearray, size: int) -> int:
        if self.asked:
            return 0
        try:
            end = self._request.scan(data, 0, size, 1)
        except ProtocolError:
            # Malformed inside: the server says so and closes, as on a direct connection.
            self._stay()
            return size
        self.asked = self._request.whole == 1
        return end

    def client_drained(self) -> None:
        """The client has taken all that was written to it."""
        self.transport.resume()

    def client_eof(self) -> None:
        """The client will send no more: pass that on, and let the server decide what it means."""
        self._ended = True
        if self.transport.pending == 0:
            self.transport.shutdown_write()

    def client_lost(self) -> None:
        """The client is gone. Closing at once also ends what the server still does for it."""
        self._owner = None
        self.close()

    # The server's side

    def received(self, data: bytearray, size: int) -> None:
        """Bytes from the server."""
        owner = self._owner
        if owner is None:
            self.close()  # a spare link is owed nothing
            return
        if self._mode is Mode.FRAME:
            self._follow_reply(data, size)
        if owner.transport.write(data, 0, size) > self._limit:
            self.transport.pause()
        if self._mode is Mode.FRAME and self.asked and self._reply.whole == 1:
            self._owner = None
            rest = bytes(self._rest)
            self._rest.clear()
            self.transport.resume()
            owner.unpinned(rest)

    def _follow_reply(self, data: bytearray, size: int) -> None:
        at = 0
        try:
            while at < size:
                at = self._reply.scan(data, at, size, 1)
                if self._reply.whole == 1 and (at < size or not self.asked):
                    # More than the one reply, or one too soon: no clean link can come of it.
                    self._stay()
                    return
        except ProtocolError:
            self._stay()

    def _stay(self) -> None:
        """The link cannot be shown to be clean: it remains the client's."""
        self._mode = Mode.LIFE
        self.asked = False
        if self._rest and self._owner is not None:
            self.transport.write(bytes(self._rest), 0, len(self._rest))
            self._rest.clear()
            self._owner.transport.resume()

    def eof(self) -> None:
        """The server closed the connection."""
        self.lost("the server closed the connection")

    def lost(self, reason: str) -> None:
        """The connection is over."""
        owner = self._owner
        self._owner = None
        self.close()
        if owner is not None:
            owner.upstream_closed(reason)

    def drained(self) -> None:
        """The server has taken all that was written to it."""
        owner = self._owner
        if owner is None:
            return
        if self._ended:
            self.transport.shutdown_write()
        elif not self.asked:
            owner.transport.resume()

    def finished(self) -> None:
        """Never: a pinned link is closed at once."""

    def close(self) -> None:
        """Close at once."""
        self.alive = False
        self.transport.close()
