"""Owns plain sockets on the event loop: polled together, read into one buffer, written through.

uvloop's transports would cost about 1.5 us more per request and hide the sender's credentials, so
sockets are read and written directly. They are not readers of the loop one by one, either: all of
them are in one edge-triggered epoll set, and only that set is a reader of the loop. A turn is what
one wait on the set brings: every ready socket is handled, then what was queued is written, one
write per socket. Only what the kernel does not take at once waits for a socket to become writable.
"""

from __future__ import annotations

import asyncio
import errno as codes
import logging
import os
import select
import socket
from typing import Any, Protocol

import cython

if cython.compiled:
    from cython.cimports.libc.errno import errno
    from cython.cimports.libc.string import memcpy, memmove
    from cython.cimports.resproxy.net.linux import (
        MSG_NOSIGNAL,
        epoll_event,
        epoll_wait,
        recv,
        send,
    )

log = logging.getLogger(__name__)

_EAGAIN = cython.declare(cython.int, codes.EAGAIN)
_EINTR = cython.declare(cython.int, codes.EINTR)
_BLOCKED = cython.declare(cython.Py_ssize_t, -1)
_FAILED = cython.declare(cython.Py_ssize_t, -2)

_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_WRITABLE = select.EPOLLOUT
_OUT = cython.declare(cython.uint, select.EPOLLOUT)
# Anything else than these means that the end may lie behind the data that is read next.
_ORDINARY = cython.declare(cython.uint, select.EPOLLIN | select.EPOLLOUT)

# Turns taken before the loop's other work has a chance, and the sockets in a turn from which on
# another turn is worth trying at once.
_TURNS = cython.declare(cython.int, 16)
_BUSY = cython.declare(cython.int, 4)

_FIRST_CAPACITY = cython.declare(cython.Py_ssize_t, 4 * 1024)


class Handler(Protocol):
    """The owner of a socket. None of these may raise."""

    def received(self, data: bytearray, size: int) -> None:
        """data[:size] has arrived; the buffer is shared and will be overwritten."""

    def eof(self) -> None:
        """The peer will send no more. Reading has ended; writing is still possible."""

    def lost(self, reason: str) -> None:
        """The connection broke. Nothing can be read or written any more."""

    def drained(self) -> None:
        """Everything that had to wait for the peer has been written."""

    def finished(self) -> None:
        """After finish() had to wait: everything is written, and the socket is closed."""


@cython.cclass
class Poller:
    """The epoll set of all plain sockets of a loop, and the turns it takes.

    buffer: what every socket is read into; a handler is done with it when received() returns.
    """

    loop: asyncio.AbstractEventLoop = cython.declare(object, visibility="readonly")
    buffer: bytearray = cython.declare(bytearray, visibility="readonly")

    _epoll: Any
    _fd: cython.int
    _sockets: list[PlainSocket | None]  # by descriptor; None where it is none of ours
    _queued: list[PlainSocket]  # sockets with something to write at the end of the turn
    _unread: list[PlainSocket]  # sockets that may have more to read than was taken
    _turning: cython.bint
    _scheduled: cython.bint

    def __init__(self, loop: asyncio.AbstractEventLoop, receive_buffer: int) -> None:
        """receive_buffer: bytes; the most that is read from one socket at a time."""
        self.loop = loop
        self.buffer = bytearray(receive_buffer)
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._sockets = []
        self._queued = []
        self._unread = []
        self._turning = self._scheduled = False
        loop.add_reader(self._fd, self._ready)

    def close(self) -> None:
        """Take no more turns; the sockets are their owners' to close."""
        self.loop.remove_reader(self._fd)
        self._epoll.close()

    @cython.cfunc
    def _add(self, plain: PlainSocket) -> cython.void:
        fd: cython.Py_ssize_t = plain._fd
        while len(self._sockets) <= fd:
            self._sockets.append(None)
        self._sockets[fd] = plain
        self._epoll.register(fd, _READABLE)

    @cython.cfunc
    def _remove(self, plain: PlainSocket) -> cython.void:
        # The kernel takes a closed descriptor out of the set by itself.
        self._sockets[plain._fd] = None

    @cython.cfunc
    def _watch_writable(self, plain: PlainSocket, on: cython.bint) -> cython.void:
        self._epoll.modify(plain._fd, _READABLE | _WRITABLE if on else _READABLE)

    @cython.cfunc
    def _queue(self, plain: PlainSocket) -> cython.void:
        self._queued.append(plain)
        if not self._turning:
            self._schedule()

    @cython.cfunc
    def _read_later(self, plain: PlainSocket) -> cython.void:
        self._unread.append(plain)
        if not self._turning:
            self._schedule()

    @cython.cfunc
    def _schedule(self) -> cython.void:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._end_turn)

    def _ready(self) -> None:
        """The loop says that the set has something: take turns while much is going on."""
        events: cython.int
        for _ in range(_TURNS):
            events = self._handle_events()
            self._end_turn()
            if events < _BUSY:
                return

    @cython.cfunc
    def _handle_events(self) -> cython.int:
        n: cython.int
        i: cython.int
        plain: PlainSocket | None
        self._turning = True
        if cython.compiled:
            events = cython.declare(epoll_event[256])
            n = epoll_wait(self._fd, events, cython.sizeof(events) // cython.sizeof(epoll_event), 0)
            for i in range(n):
                plain = self._sockets[events[i].data.fd]
                if plain is not None:
                    try:
                        plain._event(events[i].events)
                    except Exception as exc:  # noqa: BLE001 - the other sockets go on
                        plain._failed(exc)
        else:
            ready = self._epoll.poll(0, 256)
            n = len(ready)
            for fd, mask in ready:
                plain = self._sockets[fd]
                if plain is not None:
                    try:
                        plain._event(mask)
                    except Exception as exc:  # noqa: BLE001 - the other sockets go on
                        plain._failed(exc)
        self._turning = False
        return n

    def _end_turn(self) -> None:
        """Read on where there was more, then write what was queued."""
        plain: PlainSocket
        self._scheduled = False
        self._turning = True
        unread: list[PlainSocket] = self._unread
        if unread:
            self._unread = []
            for plain in unread:
                try:
                    plain._read_on()
                except Exception as exc:  # noqa: BLE001 - the other sockets go on
                    plain._failed(exc)
        queued: list[PlainSocket] = self._queued
        if queued:
            self._queued = []
            for plain in queued:
                try:
                    plain.flush()
                except Exception as exc:  # noqa: BLE001 - the other sockets go on
                    plain._failed(exc)
        self._turning = False
        if self._unread or self._queued:
            self._schedule()


@cython.cclass
class PlainSocket:
    """One connected, non-blocking socket.

    pending: bytes accepted and not yet given to the kernel. queued: some of them wait for the end
    of the turn.
    """

    sock: socket.SocketType = cython.declare(object, visibility="readonly")
    closed = cython.declare(cython.bint, visibility="readonly")
    pending = cython.declare(cython.Py_ssize_t, visibility="readonly")
    queued = cython.declare(cython.bint, visibility="readonly")

    _fd: cython.int
    _handler: Any  # a Handler; None when closed
    _poller: Poller
    _buffer: bytearray
    _size: cython.Py_ssize_t
    _paused: cython.bint
    _more: cython.bint  # there may be something to read that no event will tell of
    _listed: cython.bint  # in the poller's list of such sockets
    _waiting: cython.bint  # for the socket to become writable
    _broken: cython.bint
    _finishing: cython.bint
    _keep: cython.Py_ssize_t
    _out: bytearray | None
    _start: cython.Py_ssize_t  # of the unsent bytes in _out

    def __init__(
        self,
        sock: socket.SocketType,
        poller: Poller,
        handler: Handler,
        keep: cython.Py_ssize_t = 64 * 1024,
    ) -> None:
        """Take over sock, which must be non-blocking; nothing is read before resume().

        keep: bytes; an output buffer that is empty is given back to the allocator above this size.
        """
        self._keep = keep
        self.sock = sock
        self._fd = sock.fileno()
        self._poller = poller
        self._buffer = poller.buffer
        self._size = len(poller.buffer)
        self._handler = handler
        self.closed = self.queued = False
        self._more = self._listed = self._waiting = self._broken = self._finishing = False
        self._paused = True
        self._out = None
        self._start = self.pending = 0
        poller._add(self)

    # Reading

    def resume(self) -> None:
        """Deliver what arrives to the handler's received(), never from within this call."""
        self._paused = False
        if self._more:
            self._list()

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True

    @cython.cfunc
    def _list(self) -> cython.void:
        if not self._listed and not self.closed:
            self._listed = True
            self._poller._read_later(self)

    @cython.cfunc
    def _event(self, mask: cython.uint) -> cython.void:
        if mask & _OUT and self._waiting:
            self._writable()
        if mask != _OUT:
            if mask & ~_ORDINARY:
                self._more = True
            self._read()

    @cython.cfunc
    def _read_on(self) -> cython.void:
        self._listed = False
        if self._more:
            self._read()

    @cython.cfunc
    def _read(self) -> cython.void:
        """Read once. An edge is told only once, so `_more` remembers what is left for later."""
        n: cython.Py_ssize_t
        if self.closed or self._broken:
            return
        if self._paused:
            self._more = True
            return
        if cython.compiled:
            p: cython.p_uchar = self._buffer
            n = recv(self._fd, p, self._size, 0)
            if n < 0:
                self._not_read(errno)
                return
        else:
            try:
                n = self.sock.recv_into(self._buffer)
            except OSError as exc:
                self._not_read(exc.errno or 0)
                return
        if n == 0:
            self._paused = True
            self._handler.eof()
            return
        if n == self._size:
            self._more = True
        self._handler.received(self._buffer, n)
        if self._more and not self._paused:
            self._list()

    @cython.cfunc
    def _not_read(self, code: cython.int) -> cython.void:
        if code == _EAGAIN:
            self._more = False
        elif code == _EINTR:
            self._more = True
            self._list()
        else:
            self._break(os.strerror(code))

    # Writing

    def write(
        self, data: bytes | bytearray, start: cython.Py_ssize_t, end: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Send data[start:end] now, behind whatever still waits; returns `pending`."""
        n: cython.Py_ssize_t
        if self.pending == 0 and not self._broken and not self.closed:
            n = self._send(data, start, end)
            if n == end - start or n == _FAILED:
                return 0
            if n > 0:
                start += n
        self._append(data, start, end)
        if not self.queued:
            self._wait()
        return self.pending

    def queue(
        self, data: bytes | bytearray, start: cython.Py_ssize_t, end: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Keep data[start:end] for the next flush, behind what waits; returns `pending`."""
        self._append(data, start, end)
        return self.pending

    def flush_at_end_of_turn(self) -> None:
        """Send what is queued when all that is ready now has been handled."""
        if not self.queued and not self._waiting and not self.closed:
            self.queued = True
            self._poller._queue(self)

    def flush(self) -> None:
        """Send what was queued."""
        n: cython.Py_ssize_t
        self.queued = False
        if self.pending == 0 or self._broken or self.closed or self._waiting:
            return
        n = self._send(self._out, self._start, self._start + self.pending)
        if n > 0:
            self._sent(n)
        if self._broken:
            return
        if self.pending != 0:
            self._wait()
        else:
            self._handler.drained()

    def finish(self) -> bool:
        """Read no more, and close when everything accepted so far is written.

        Returns whether that is now; otherwise the handler's finished() tells.
        """
        self._paused = True
        if self.pending == 0 or self._broken:
            self.close()
        else:
            self._finishing = True
        return self.closed

    def shutdown_write(self) -> None:
        """Tell the peer that nothing follows; only when nothing is pending."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._break(exc.strerror or str(exc))

    def close(self) -> None:
        """Close at once; what is pending is dropped and the handler hears no more."""
        if self.closed:
            return
        self.closed = True
        self._poller._remove(self)
        self._out = None
        self.pending = 0
        self._handler = None
        self.sock.close()

    @cython.cfunc
    def _send(
        self, data: bytes | bytearray, start: cython.Py_ssize_t, end: cython.Py_ssize_t
    ) -> cython.Py_ssize_t:
        """Bytes the kernel took, _BLOCKED or _FAILED."""
        n: cython.Py_ssize_t
        if cython.compiled:
            p: cython.p_const_uchar = data
            n = send(self._fd, p + start, end - start, MSG_NOSIGNAL)
            if n >= 0:
                return n
            if errno == _EAGAIN or errno == _EINTR:
                return _BLOCKED
            self._break(os.strerror(errno))
            return _FAILED
        try:
            return self.sock.send(memoryview(data)[start:end])
        except (BlockingIOError, InterruptedError):
            return _BLOCKED
        except OSError as exc:
            self._break(exc.strerror or str(exc))
            return _FAILED

    def _break(self, reason: str) -> None:
        """Report a broken connection, later: whoever is writing must not be re-entered."""
        if not self._broken and not self.closed:
            self._broken = True
            self._paused = True
            self._poller.loop.call_soon(self._report, reason)

    def _failed(self, exc: Exception) -> None:
        """A handler raised, which is a defect: this connection ends, no other is touched."""
        log.error("defect in the handling of a connection", exc_info=exc)
        self._break("an internal error, which the proxy's log describes")

    def _report(self, reason: str) -> None:
        while not self.closed:
            try:
                size = self.sock.recv_into(self._buffer)  # what the peer said before it hung up
            except OSError:
                size = 0
            if size == 0:
                self._handler.lost(reason)
                return
            self._handler.received(self._buffer, size)

    def _wait(self) -> None:
        if not self._waiting and not self._broken and not self.closed:
            self._waiting = True
            self._poller._watch_writable(self, True)

    @cython.cfunc
    def _writable(self) -> cython.void:
        n: cython.Py_ssize_t
        if self.closed or self._broken:
            return
        n = self._send(self._out, self._start, self._start + self.pending)
        if n > 0:
            self._sent(n)
        if self.pending == 0 or self._broken:
            self._waiting = False
            self._poller._watch_writable(self, False)
            if self._broken:
                return
            handler: Any = self._handler
            if self._finishing:
                self.close()
                handler.finished()
            else:
                handler.drained()

    @cython.cfunc
    def _sent(self, n: cython.Py_ssize_t) -> cython.void:
        self._start += n
        self.pending -= n
        if self.pending == 0:
            self._start = 0
            if self._out is not None and len(self._out) > self._keep:
                self._out = None

    @cython.cfunc
    @cython.boundscheck(False)
    @cython.wraparound(False)
    def _append(
        self, data: bytes | bytearray, start: cython.Py_ssize_t, end: cython.Py_ssize_t
    ) -> cython.void:
        size: cython.Py_ssize_t = end - start
        tail: cython.Py_ssize_t
        if self._broken or self.closed:
            return
        buffer: bytearray = self._reserved(size)
        tail = self._start + self.pending
        if cython.compiled:
            out: cython.p_uchar = buffer
            source: cython.p_const_uchar = data
            memcpy(out + tail, source + start, size)
        else:
            buffer[tail : tail + size] = memoryview(data)[start:end]
        self.pending += size

    @cython.cfunc
    def _reserved(self, size: cython.Py_ssize_t) -> bytearray:
        """The output buffer, with room for `size` bytes behind the unsent ones."""
        capacity: cython.Py_ssize_t
        buffer: bytearray | None = self._out
        if buffer is None:
            buffer = self._out = bytearray(max(size, _FIRST_CAPACITY))
            return buffer
        capacity = len(buffer)
        if self._start + self.pending + size <= capacity:
            return buffer
        if self._start > 0 and self._start >= self.pending:
            # At least half is free in front: moving is cheaper than growing, and amortised.
            if cython.compiled:
                out: cython.p_uchar = buffer
                memmove(out, out + self._start, self.pending)
            else:
                buffer[: self.pending] = buffer[self._start : self._start + self.pending]
            self._start = 0
        if self._start + self.pending + size > capacity:
            buffer.extend(bytes(max(capacity, self._start + self.pending + size - capacity)))
        return buffer
