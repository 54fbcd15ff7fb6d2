"""Owns the framing of replies: where each one ends in a stream of bytes, RESP2 and RESP3.

The scanner keeps no bytes, only a state, so that a reply can be passed on before it is whole. One
integer frames any nesting: a message takes one off, an aggregate of N adds N (the RESP spec's
aggregates are prefix counts). A top-level push is no reply and is told apart from its first byte.

Requests are RESP arrays of bulk strings, so the same scanner finds the end of a streamed request.
"""

from __future__ import annotations

import cython


class ProtocolError(Exception):
    """The bytes are no RESP as servers send it: nothing after them can be matched."""


# Where in an element the next byte is.
_TYPE = cython.declare(cython.int, 0)
_FIRST = cython.declare(cython.int, 1)  # of a number: a sign, or a digit
_NUMBER = cython.declare(cython.int, 2)
_NUMBER_LF = cython.declare(cython.int, 3)
_LINE = cython.declare(cython.int, 4)
_LINE_LF = cython.declare(cython.int, 5)
_BODY = cython.declare(cython.int, 6)
_BODY_CR = cython.declare(cython.int, 7)
_BODY_LF = cython.declare(cython.int, 8)

_MAX_NUMBER = cython.declare(cython.Py_ssize_t, 1 << 48)
_MAX_LEFT = cython.declare(cython.Py_ssize_t, 1 << 60)


@cython.cclass
class ReplyScanner:
    """Frames one stream of replies.

    whole: replies completed by the last scan(); push: the bytes it passed were (part of) a push.
    """

    whole = cython.declare(cython.Py_ssize_t, visibility="readonly")
    push = cython.declare(cython.bint, visibility="readonly")

    _state: cython.int
    _type: cython.int
    _negative: cython.bint
    _number: cython.Py_ssize_t  # the header's number, then the rest of the body
    _left: cython.Py_ssize_t  # elements still to come until the reply is whole; 0 between replies

    def __init__(self) -> None:
        self.whole = 0
        self.push = False
        self._state = _TYPE
        self._type = 0
        self._negative = False
        self._number = 0
        self._left = 0

    @property
    def inside(self) -> bool:
        """Whether a reply or push has begun and is not whole."""
        return self._left != 0

    @cython.boundscheck(False)
    @cython.wraparound(False)
    def scan(
        self,
        data: bytes | bytearray,
        start: cython.Py_ssize_t,
        size: cython.Py_ssize_t,
        want: cython.Py_ssize_t,
    ) -> cython.Py_ssize_t:
        """Pass bytes of data[start:size]; returns the offset of the first byte not passed.

        Ends after `want` whole replies, after one whole push, before a push that follows replies,
        or at the end of the data. want == 0 passes nothing but a push. Raises ProtocolError.
        """
        p: cython.p_const_uchar = data
        at: cython.Py_ssize_t = start
        state: cython.int = self._state
        left: cython.Py_ssize_t = self._left
        number: cython.Py_ssize_t = self._number
        whole: cython.Py_ssize_t = 0
        c: cython.int
        if left == 0:
            self.push = False
        while at < size:
            if state == _TYPE:
                c = p[at]
                if left == 0:
                    if c == 62:  # '>'
                        if whole:
                            break
                        self.push = True
                    elif whole >= want:
                        break
                    left = 1
                elif c == 62:
                    raise ProtocolError("a push inside another reply")
                at += 1
                if c in (36, 42, 37, 126, 61, 33, 62, 124):  # $ * % ~ = ! > | carry a number
                    self._type = c
                    number = 0
                    self._negative = False
                    state = _FIRST
                elif c in (43, 45, 58, 95, 35, 44, 40):  # + - : _ # , ( are lines
                    state = _LINE
                else:
                    raise ProtocolError(f"no RESP type: byte 0x{c:02x}")
                continue
            if state == _BODY:
                if size - at < number:
                    number -= size - at
                    at = size
                    break
                at += number
                state = _BODY_CR
                continue
            if state == _LINE:
                while at < size and p[at] != 13 and p[at] != 10:
                    at += 1
                if at == size:
                    break
                if p[at] == 10:
                    raise ProtocolError("a line without its CR")
                at += 1
                state = _LINE_LF
                continue
            if state == _FIRST:
                if p[at] == 45:
                    self._negative = True
                    at += 1
                elif not 48 <= p[at] <= 57:
                    raise ProtocolError("a length that is no number")
                state = _NUMBER
                continue
            if state == _NUMBER:
                while at < size and 48 <= p[at] <= 57:
                    number = number * 10 + (p[at] - 48)
                    if number > _MAX_NUMBER:
                        raise ProtocolError("a length out of every range")
                    at += 1
                if at == size:
                    break
                if p[at] != 13:
                    raise ProtocolError("a length that is no number")
                at += 1
                state = _NUMBER_LF
                continue
            if state == _BODY_CR:
                if p[at] != 13:
                    raise ProtocolError("a bulk longer than its length")
                at += 1
                state = _BODY_LF
                continue

            # What is left ends a line: _NUMBER_LF, _LINE_LF or _BODY_LF.
            if p[at] != 10:
                raise ProtocolError("a CR without its LF")
            at += 1
            if state == _NUMBER_LF:
                left = self._header(left, number)
                state = _TYPE
                if left < 0:
                    left = -left
                    state = _BODY
            else:
                left -= 1
                state = _TYPE
            if left == 0:
                if self.push:
                    break
                whole += 1
                if whole == want:
                    break
        self._state = state
        self._left = left
        self._number = number
        self.whole = whole
        return at

    @cython.cfunc
    @cython.exceptval(check=True)
    def _header(self, left: cython.Py_ssize_t, number: cython.Py_ssize_t) -> cython.Py_ssize_t:
        """How many elements are left after a header; negated where a body follows."""
        c: cython.int = self._type
        if self._negative:
            if number != 1 or (c != 36 and c != 42):
                raise ProtocolError("a negative length")
            return left - 1
        if c == 36 or c == 61 or c == 33:  # $ = !
            return -left
        if c == 37:  # %
            left += 2 * number - 1
        elif c == 124:  # | an attribute stands before its element and is none itself
            left += 2 * number
        else:
            left += number - 1
        if left > _MAX_LEFT:
            raise ProtocolError("more elements than can be")
        return left
