"""Owns the framing of requests: where one client's commands begin and end, and which are special.

The scanner never copies or decodes a command. It counts whole *plain* frames (commands whose name
is not in the `Dialect`) so that a run of them can be forwarded as one slice, and it stops at the
first thing that needs a decision. It is resumable at any byte and never scans an argument twice.

The limits and the error texts are Redis's own (networking.c: processMultibulkBuffer and
processInlineBuffer). What Redis accepts although it is not canonical RESP (a CR without its LF, a
NUL inside a header) is reported as `Stop.ODD`: such bytes may go to a link of their own, where
Redis itself decides, but never onto a shared link.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import cython


class Stop(IntEnum):
    """Why a scan ended. `end` is where the run of plain frames ended in every case."""

    MORE = 0  #: at a frame's beginning or inside one: more bytes are needed
    COMMAND = 1  #: a special command, whole in [end, next); `trait` and `argc` describe it
    INLINE = 2  #: an inline command, its line in [end, next)
    EMPTY = 3  #: a multibulk of no arguments in [end, next): Redis ignores it
    LARGE = 4  #: not whole, and larger than `large`: to be streamed, not buffered
    ODD = 5  #: legal for Redis, not canonical: only a link of its own may see it
    ERROR = 6  #: malformed; `error` is Redis's text, and Redis closes the connection


INLINE_LIMIT = 64 * 1024  #: bytes; PROTO_INLINE_MAX_SIZE, for inline lines and for header lines
ARGUMENT_LIMIT = 1024 * 1024  #: arguments; above it servers differ, so the server itself decides
ARGUMENT_MAX = 2**31 - 1  #: arguments; above it every server refuses
BULK_LIMIT = 512 * 1024 * 1024  #: bytes; the default of proto-max-bulk-len

_MORE = cython.declare(cython.int, Stop.MORE)
_COMMAND = cython.declare(cython.int, Stop.COMMAND)
_INLINE = cython.declare(cython.int, Stop.INLINE)
_EMPTY = cython.declare(cython.int, Stop.EMPTY)
_LARGE = cython.declare(cython.int, Stop.LARGE)
_ODD = cython.declare(cython.int, Stop.ODD)
_ERROR = cython.declare(cython.int, Stop.ERROR)
_WHOLE = cython.declare(cython.int, -1)  # a header line was read; no Stop

_LINE_LIMIT = cython.declare(cython.Py_ssize_t, INLINE_LIMIT)
_ARGUMENT_LIMIT = cython.declare(cython.Py_ssize_t, ARGUMENT_LIMIT)
_ARGUMENT_MAX = cython.declare(cython.Py_ssize_t, ARGUMENT_MAX)
# Numbers of more digits are out of every limit; stopping here keeps the C integer from wrapping.
_MAX_DIGITS = cython.declare(cython.int, 18)


@cython.cclass
class Dialect:
    """What one server makes of requests: shared by all its scanners, and replaced in place.

    names: those that are not plain, upper and lower case, to their trait (an int other than 0).
    max_bulk: bytes; the server's proto-max-bulk-len.
    relay: nothing may be shared (the server wants every client to authenticate): all is ODD.
    """

    names = cython.declare(dict, visibility="readonly")
    max_bulk = cython.declare(cython.Py_ssize_t, visibility="readonly")
    relay = cython.declare(cython.bint, visibility="readonly")
    # One byte for each (length, first letter): most plain commands are told from it alone.
    _filter: bytes

    def __init__(self, names: Mapping[bytes, int]) -> None:
        self.replace(names)

    def replace(
        self,
        names: Mapping[bytes, int],
        max_bulk: cython.Py_ssize_t = BULK_LIMIT,
        relay: cython.bint = False,
    ) -> None:
        """More is known of the server: in force from the next frame that is scanned on."""
        self.max_bulk = max_bulk
        self.relay = relay
        table = bytearray(32 * 32)
        for name in names:
            if name:
                table[min(len(name), 31) * 32 + (name[0] & 31)] = 1
        self._filter = bytes(table)
        self.names = dict(names)

    @cython.cfunc
    @cython.boundscheck(False)
    @cython.wraparound(False)
    def _trait(
        self, p: cython.p_const_uchar, start: cython.Py_ssize_t, size: cython.Py_ssize_t
    ) -> cython.int:
        if size == 0:
            return 0
        table: cython.p_const_uchar = self._filter
        row: cython.Py_ssize_t = min(31, size)
        if not table[row * 32 + (p[start] & 31)]:
            return 0
        name: bytes = p[start : start + size] if cython.compiled else bytes(p[start : start + size])
        trait: object = self.names.get(name)
        if trait is None:
            trait = self.names.get(name.upper(), 0)
        return trait

    def trait(self, name: bytes) -> int:
        """The trait of a name in any case; 0 where it is plain."""
        return self._trait(name, 0, len(name))


@cython.cclass
class RequestScanner:
    """Frames one client's requests.

    large: bytes; a frame that is not whole and is larger stops the scan with `Stop.LARGE`.
    """

    count = cython.declare(cython.Py_ssize_t, visibility="readonly")
    end = cython.declare(cython.Py_ssize_t, visibility="readonly")
    next = cython.declare(cython.Py_ssize_t, visibility="readonly")
    trait = cython.declare(cython.int, visibility="readonly")
    argc = cython.declare(cython.Py_ssize_t, visibility="readonly")
    error = cython.declare(bytes, visibility="readonly")

    _dialect: Dialect
    _large: cython.Py_ssize_t
    # Progress inside a frame that is not whole, relative to its first byte.
    _left: cython.Py_ssize_t  # arguments still to come
    _offset: cython.Py_ssize_t  # of the next argument's header, or of the unsearched rest of a line
    # What _header() found.
    _number: cython.Py_ssize_t
    _after: cython.Py_ssize_t

    def __init__(self, dialect: Dialect, large: cython.Py_ssize_t) -> None:
        self._dialect = dialect
        self._large = large
        self.count = self.end = self.next = self.argc = 0
        self.trait = 0
        self.error = b""
        self._left = self._offset = self._number = self._after = 0

    def rewind(self) -> None:
        """Forget the progress inside a frame: the next scan begins at some frame's first byte."""
        self._left = 0
        self._offset = 0

    @cython.boundscheck(False)
    @cython.wraparound(False)
    def scan(
        self, data: bytes | bytearray, start: cython.Py_ssize_t, size: cython.Py_ssize_t
    ) -> cython.int:
        """Scan data[start:size] and return a `Stop`.

        start is a frame's first byte: the very frame that an earlier scan stopped in with MORE,
        unless rewind() was called since.
        """
        p: cython.p_const_uchar = data
        frame: cython.Py_ssize_t = start
        at: cython.Py_ssize_t
        status: cython.int
        self.count = 0
        self.end = start
        while True:
            if self._left == 0:
                if frame >= size:
                    return _MORE
                if self._dialect.relay:
                    return _ODD
                if p[frame] != 42:  # '*'
                    return self._inline(p, frame, size)
                status = self._header(p, frame + 1, size, frame)
                if status != _WHOLE:
                    return self._header_stop(status, b"multibulk length", b"mbulk count string")
                if self._number <= 0:
                    self.next = self._after
                    return _EMPTY
                if self._number > _ARGUMENT_MAX:
                    return self._fail(b"invalid multibulk length")
                if self._number > _ARGUMENT_LIMIT:
                    self.trait = 0
                    return _LARGE
                self.argc = self._left = self._number
                self.trait = 0
                at = self._after
            else:
                at = frame + self._offset
            status = self._arguments(p, frame, at, size)
            if status != _WHOLE:
                return status
            if self.trait != 0:
                self.next = self._after
                return _COMMAND
            self.count += 1
            frame = self.end = self._after

    @cython.cfunc
    @cython.boundscheck(False)
    @cython.wraparound(False)
    def _arguments(
        self,
        p: cython.p_const_uchar,
        frame: cython.Py_ssize_t,
        at: cython.Py_ssize_t,
        size: cython.Py_ssize_t,
    ) -> cython.int:
        """Walk the bulks of the frame from offset `at`; `_after` is the frame's end when whole."""
        following: cython.Py_ssize_t
        status: cython.int
        while self._left > 0:
            if at >= size:
                return self._suspend(frame, at, size)
            if p[at] != 36:  # '$'; Redis wants the whole line before it complains
                status = self._bad_line(p, at, size, at)
                if status == _ERROR:
                    return self._fail(b"expected '$', got '%c'" % p[at])
            else:
                status = self._header(p, at + 1, size, at)
            if status == _MORE:
                return self._suspend(frame, at, size)
            if status != _WHOLE:
                return self._header_stop(status, b"bulk length", b"bulk count string")
            if self._number < 0 or self._number > self._dialect.max_bulk:
                return self._fail(b"invalid bulk length")
            following = self._after + self._number + 2
            if following > size:
                if following - frame > self._large:
                    if self._left == self.argc:
                        self.trait = 0  # the name itself is that large: no special command's
                    return _LARGE
                return self._suspend(frame, at, size)
            if p[following - 2] != 13 or p[following - 1] != 10:
                return _ODD
            if self._left == self.argc:
                self.trait = self._dialect._trait(p, self._after, self._number)
            self._left -= 1
            at = following
        self._offset = 0
        self._after = at
        return _WHOLE

    @cython.cfunc
    def _suspend(
        self, frame: cython.Py_ssize_t, at: cython.Py_ssize_t, size: cython.Py_ssize_t
    ) -> cython.int:
        self._offset = at - frame
        return _LARGE if size - frame > self._large else _MORE

    @cython.cfunc
    def _fail(self, text: bytes) -> cython.int:
        self.error = b"Protocol error: " + text
        return _ERROR

    @cython.cfunc
    def _header_stop(self, status: cython.int, what: bytes, line: bytes) -> cython.int:
        if status == _ERROR:
            return self._fail(b"invalid " + what)
        if status == _LARGE:
            return self._fail(b"too big " + line)
        return status

    @cython.cfunc
    @cython.boundscheck(False)
    @cython.wraparound(False)
    def _header(
        self,
        p: cython.p_const_uchar,
        at: cython.Py_ssize_t,
        size: cython.Py_ssize_t,
        line: cython.Py_ssize_t,
    ) -> cython.int:
        """Read a number and its CRLF from `at`; the line began at `line`.

        Returns _WHOLE (`_number`, `_after` are set), MORE, ODD, ERROR (no number by Redis's
        string2ll) or LARGE (a line that never ends).
        """
        start: cython.Py_ssize_t
        number: cython.Py_ssize_t = 0
        negative: cython.bint = at < size and p[at] == 45  # '-'
        if negative:
            at += 1
        start = at
        while at < size and 48 <= p[at] <= 57 and at - start < _MAX_DIGITS:
            number = number * 10 + (p[at] - 48)
            at += 1
        if at + 1 < size and p[at] == 13 and at > start:
            if p[at + 1] != 10:
                return _ODD
            if p[start] == 48 and (at - start > 1 or negative):
                return _ERROR
            self._number = -number if negative else number
            self._after = at + 2
            return _WHOLE
        if negative and at < size and 48 <= p[at] <= 57:
            return _ODD  # below zero is below zero; whether it fits an int64 Redis may find out
        return self._bad_line(p, at, size, line)

    @cython.cfunc
    @cython.boundscheck(False)
    @cython.wraparound(False)
    def _bad_line(
        self,
        p: cython.p_const_uchar,
        at: cython.Py_ssize_t,
        size: cython.Py_ssize_t,
        line: cython.Py_ssize_t,
    ) -> cython.int:
        """A line that is no header as far as `at`: Redis decides once it has all of it."""
        limit: cython.Py_ssize_t = line + _LINE_LIMIT
        while at < size and at <= limit:
            if p[at] == 13:
                return _ERROR if at + 1 < size else _MORE
            if p[at] == 0:
                return _ODD  # Redis looks for the CR with strchr()
            at += 1
        return _LARGE if size - line > _LINE_LIMIT else _MORE

    @cython.cfunc
    @cython.boundscheck(False)
    @cython.wraparound(False)
    def _inline(
        self, p: cython.p_const_uchar, frame: cython.Py_ssize_t, size: cython.Py_ssize_t
    ) -> cython.int:
        at: cython.Py_ssize_t = frame + self._offset
        while at < size:
            if p[at] == 10 and at - frame <= _LINE_LIMIT:
                self._offset = 0
                self.next = at + 1
                return _INLINE
            if at - frame > _LINE_LIMIT:
                break
            if p[at] == 0:
                return _ODD  # Redis looks for the LF with strchr()
            at += 1
        if size - frame > _LINE_LIMIT:
            return self._fail(b"too big inline request")
        self._offset = at - frame
        return _MORE
