"""Owns plain sockets on the event loop: read into one shared buffer, write through, gather.

uvloop's transports would cost about 1.5 us more per request and hide the sender's credentials, so
a socket is read and written directly when the loop reports it ready. Bytes given to write() leave
at once; bytes given to queue() leave once per turn of the loop, together. Only what the kernel does
not take is copied and waits for the socket to become writable.
"""

from __future__ import annotations

import asyncio
import errno as codes
import os
import socket
from typing import Protocol

import cython

if cython.compiled:
    from cython.cimports.libc.errno import errno
    from cython.cimports.libc.string import memcpy, memmove
    from cython.cimports.posix.unistd import read as c_read
    from cython.cimports.posix.unistd import write as c_write

_EAGAIN = cython.declare(cython.int, codes.EAGAIN)
_EINTR = cython.declare(cython.int, codes.EINTR)
_BLOCKED = cython.declare(cython.Py_ssize_t, -1)
_FAILED = cython.declare(cython.Py_ssize_t, -2)

# An output buffer that is empty is given back to the allocator above this size.
_KEEP = cython.declare(cython.Py_ssize_t, 64 * 1024)
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


class Turn:
    """What is done once at the end of a turn of the loop: the gathered writes.

    buffer: the receive buffer of every socket of this loop; a handler is done with it when its
    received() returns.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, receive_buffer: int) -> None:
        self.loop = loop
        self.buffer = bytearray(receive_buffer)
        self._sockets: list[PlainSocket] = []

    def add(self, plain: PlainSocket) -> None:
        """Flush this socket when all that is ready now has been handled."""
        if not self._sockets:
            self.loop.call_soon(self._end)
        self._sockets.append(plain)

    def _end(self) -> None:
        sockets = self._sockets
        self._sockets = []
        for plain in sockets:
            plain.flush()


@cython.cclass
class PlainSocket:
    """One connected, non-blocking socket. pending: bytes accepted and not yet given to the kernel."""

    sock = cython.declare(object, visibility="readonly")
    closed = cython.declare(cython.bint, visibility="readonly")
    pending = cython.declare(cython.Py_ssize_t, visibility="readonly")
    queued = cython.declare(cython.bint, visibility="readonly")

    _fd: cython.int
    _handler: object
    _turn: object
    _loop: object
    _buffer: bytearray
    _size: cython.Py_ssize_t
    _reading: cython.bint
    _paused: cython.bint
    _waiting: cython.bint  # for the socket to become writable
    _broken: cython.bint
    _finishing: cython.bint
    _out: bytearray
    _start: cython.Py_ssize_t  # of the unsent bytes in _out

    def __init__(self, sock: socket.socket, turn: Turn, handler: Handler) -> None:
        """Take over sock, which must be non-blocking; nothing is read before resume()."""
        self.sock = sock
        self._fd = sock.fileno()
        self._turn = turn
        self._loop = turn.loop
        self._buffer = turn.buffer
        self._size = len(turn.buffer)
        self._handler = handler
        self.closed = self.queued = False
        self._reading = self._waiting = self._broken = self._finishing = False
        self._paused = True
        self._out = None
        self._start = self.pending = 0

    # Reading

    def resume(self) -> None:
        """Deliver what arrives to the handler's received()."""
        self._paused = False
        if not self._reading and not self.closed and not self._broken:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)

    def pause(self) -> None:
        """Stop reading. The loop is told only if bytes do arrive: most pauses are short."""
        self._paused = True

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _readable(self) -> None:
        n: cython.Py_ssize_t
        reason: str
        if self._paused or self.closed:
            self._stop_reading()
            return
        if cython.compiled:
            p: cython.p_uchar = self._buffer
            n = c_read(self._fd, p, self._size)
            if n > 0:
                self._handler.received(self._buffer, n)
                return
            if n < 0:
                if errno == _EAGAIN or errno == _EINTR:
                    return
                reason = os.strerror(errno)
        else:
            reason = ""
            try:
                n = self.sock.recv_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                n, reason = -1, exc.strerror or str(exc)
            if n > 0:
                self._handler.received(self._buffer, n)
                return
        self._stop_reading()
        self._paused = True
        if n == 0:
            self._handler.eof()
        else:
            self._break(reason)

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
        """Send data[start:end] at the end of this turn of the loop; returns `pending`."""
        self._append(data, start, end)
        if not self.queued and not self._waiting:
            self.queued = True
            self._turn.add(self)
        return self.pending

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
        self._stop_reading()
        if self._waiting:
            self._waiting = False
            self._loop.remove_writer(self._fd)
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
            n = c_write(self._fd, p + start, end - start)
            if n >= 0:
                return n
            if errno == _EAGAIN or errno == _EINTR:
                return _BLOCKED
            self._break(os.strerror(errno))
            return _FAILED
        else:
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
            self._loop.call_soon(self._report, reason)

    def _report(self, reason: str) -> None:
        if not self.closed:
            self._handler.lost(reason)

    def _wait(self) -> None:
        if not self._waiting and not self._broken and not self.closed:
            self._waiting = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        n: cython.Py_ssize_t
        if self.closed or self._broken:
            return
        n = self._send(self._out, self._start, self._start + self.pending)
        if n > 0:
            self._sent(n)
        if self.pending == 0 or self._broken:
            self._waiting = False
            self._loop.remove_writer(self._fd)
            if self._broken:
                return
            handler: object = self._handler
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
            if len(self._out) > _KEEP:
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
        self._reserve(size)
        tail = self._start + self.pending
        if cython.compiled:
            out: cython.p_uchar = self._out
            source: cython.p_const_uchar = data
            memcpy(out + tail, source + start, size)
        else:
            self._out[tail : tail + size] = memoryview(data)[start:end]
        self.pending += size

    @cython.cfunc
    def _reserve(self, size: cython.Py_ssize_t) -> cython.void:
        """Make room for `size` bytes behind the unsent ones."""
        capacity: cython.Py_ssize_t
        if self._out is None:
            self._out = bytearray(max(size, _FIRST_CAPACITY))
            return
        capacity = len(self._out)
        if self._start + self.pending + size <= capacity:
            return
        if self._start > 0 and self._start >= self.pending:
            # At least half is free in front: moving is cheaper than growing, and amortised.
            if cython.compiled:
                out: cython.p_uchar = self._out
                memmove(out, out + self._start, self.pending)
            else:
                self._out[: self.pending] = self._out[self._start : self._start + self.pending]
            self._start = 0
        if self._start + self.pending + size > capacity:
            self._out.extend(bytes(max(capacity, self._start + self.pending + size - capacity)))
