"""The framing of replies, held against hiredis and against what the bytes were made of."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts, every_reply, mutated, pushes, replies

from resproxy.wire.replies import ProtocolError, ReplyScanner

_NOT_YET = object()


@dataclass(frozen=True)
class Item:
    """A reply or push in [start, end) of a stream."""

    start: int
    end: int
    push: bool


def _stream(parts: list[tuple[bool, bytes]]) -> tuple[bytes, list[Item]]:
    items, at = [], 0
    for push, data in parts:
        items.append(Item(at, at + len(data), push))
        at += len(data)
    return b"".join(data for _, data in parts), items


streams = st.lists(
    every_reply.map(lambda data: (False, data)) | pushes.map(lambda data: (True, data)), max_size=6
).map(_stream)


def _expected(items: list[Item], at: int, size: int, want: int) -> tuple[int, int, bool, bool]:
    """What scan() must say: (where it stops, whole, push, inside)."""
    whole, push, inside = 0, False, False
    for item in items:
        if item.end <= at:
            continue
        if at >= size:
            break
        if at == item.start and (whole if item.push else whole >= want):
            break
        push = item.push
        at = min(item.end, size)
        inside = at < item.end
        if inside:
            break
        if push:
            break
        whole += 1
        if whole == want:
            break
    return at, whole, push, inside


def _check(data: bytes, items: list[Item], ends: list[int], wants: list[int]) -> None:
    """Feed data up to each of `ends` in turn, and compare every single scan."""
    scanner = ReplyScanner()
    more = itertools.cycle(wants)
    at = 0
    inside = False
    for size in ends:
        refused = False
        while at < size:
            # Nobody asks for nothing with a reply half passed, or twice.
            want = max(next(more), 1 if inside or refused else 0)
            push_goes_on = inside and scanner.push
            end, whole, push, now_inside = _expected(items, at, size, want)
            # Behind the data lies what must not be looked at.
            found = scanner.scan(b"??" + data[:size] + b"\0?", at + 2, size + 2, want)
            assert (found - 2, scanner.whole, scanner.inside) == (end, whole, now_inside)
            if end > at:
                assert scanner.push == push
                assert scanner.push or not push_goes_on
            refused = end == at
            at, inside = end, now_inside
    assert at == len(data)
    assert not scanner.inside


@settings(deadline=None, max_examples=120)
@given(streams, st.data())
def test_every_scan_stops_where_it_must(
    stream: tuple[bytes, list[Item]], data: st.DataObject
) -> None:
    raw, items = stream
    wants = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    _check(raw, items, data.draw(cuts(len(raw))), wants)


@settings(deadline=None, max_examples=25)
@given(streams, st.integers(0, 7))
def test_a_stream_may_be_split_at_every_byte(stream: tuple[bytes, list[Item]], want: int) -> None:
    raw, items = stream
    _check(raw, items, list(range(1, len(raw) + 1)), [want])
    for cut in range(0, len(raw), 1 + len(raw) // 64):
        _check(raw, items, [cut, len(raw)], [want])


def _boundaries(data: bytes) -> list[int]:
    """Where the replies in data end, as the scanner finds them one by one."""
    scanner, found, at = ReplyScanner(), [], 0
    while at < len(data):
        at = scanner.scan(data, at, len(data), 1)
        if not scanner.inside:
            found.append(at)
    return found


@settings(deadline=None, max_examples=100)
@given(st.lists(replies, max_size=6))
def test_hiredis_finds_the_same_boundaries(parts: list[bytes]) -> None:
    # hiredis tells no offsets: given one byte after another, it has a reply at its last one. It
    # takes a bulk without waiting for its CRLF, so the boundary is looked for up to 2 bytes early.
    # Blob errors it does not know, and an attribute is a reply of its own to it: where those end
    # is known from how they were made, in the tests above.
    data = b"".join(parts)
    reader, found = hiredis.Reader(notEnoughData=_NOT_YET), []
    for at in range(len(data)):
        reader.feed(data[at : at + 1])
        if reader.gets() is not _NOT_YET:
            found.append(at + 1)
    ends = _boundaries(data)
    assert len(found) == len(ends) == len(parts)
    assert all(0 <= end - early <= 2 for end, early in zip(ends, found, strict=True))
    assert ends == list(itertools.accumulate(len(part) for part in parts))


@settings(deadline=None, max_examples=250)
@given(mutated(st.lists(replies | pushes, max_size=4).map(b"".join)), st.data())
def test_bad_bytes_end_in_an_error_or_in_boundaries_that_hiredis_agrees_to(
    data: bytes, draw: st.DataObject
) -> None:
    whole, failed = _outcome(data, [len(data)])
    # Splits change nothing, nor does what lies behind the data.
    assert _outcome(data, draw.draw(cuts(len(data)))) == (whole, failed)
    start = 0
    for end in whole:
        piece = data[start:end]
        start = end
        if piece[:1] == b"|" or b"!" in piece or b"|" in piece:
            continue  # see above
        reader = hiredis.Reader(notEnoughData=_NOT_YET)
        reader.feed(piece)
        try:
            assert reader.gets() is not _NOT_YET
            assert reader.gets() is _NOT_YET
        except (hiredis.ProtocolError, TypeError, ValueError):
            continue  # it also reads the values: a bad double, a map as a key


def _outcome(data: bytes, ends: list[int]) -> tuple[list[int], bool]:
    """Where replies and pushes end, and whether the scanner then refuses what follows."""
    found: list[int] = []
    scanner, at = ReplyScanner(), 0
    for size in ends:
        while at < size:
            before = at
            try:
                at = scanner.scan(data[:size] + b"\r\n0", at, size, 1)
            except ProtocolError:
                return found, True
            assert before < at <= size
            if not scanner.inside:
                found.append(at)
    return found, False


@pytest.mark.parametrize(
    "data",
    [
        b"OK\r\n",
        b"\r\n",
        b"\n",
        b"\0",
        b"\xff\r\n",
        b"a1\r\n",
        b"+OK\n",
        b"+OK\rX",
        b"+OK\r\r",
        b":1\n",
        b"_\n",
        b"$\r\n",
        b"$x\r\n",
        b"$ 1\r\n",
        b"$+1\r\n",
        b"$1 \r\n",
        b"$1\n",
        b"$1\rX",
        b"$?\r\n",
        b"*?\r\n",
        b"$-2\r\n",
        b"$-\r\n",
        b"$--1\r\n",
        b"$-0\r\n",
        b"*-2\r\n",
        b"%-1\r\n",
        b"~-1\r\n",
        b">-1\r\n",
        b"|-1\r\n",
        b"=-1\r\n",
        b"!-1\r\n",
        b"$1\r\nab\r\n",
        b"$1\r\na\n\r",
        b"$1\r\na\rX",
        b"$0\r\nX",
        b"*1\r\n>1\r\n",
        b"*2\r\n:1\r\n>0\r\n",
        b"|1\r\n+k\r\n+v\r\n>1\r\n",
        b"*1\r\n\r\n",
        b"$999999999999999999999999999999\r\n",
        b"$9223372036854775808\r\n",
        b"$18446744073709551617\r\n",
        b"*281474976710657\r\n",
        b"%9223372036854775807\r\n",
    ],
)
def test_malformed(data: bytes) -> None:
    for ends in ([len(data)], list(range(1, len(data) + 1))):
        assert _outcome(data, ends) == ([], True)


def test_nesting_of_huge_aggregates_is_no_overflow() -> None:
    header = b"%281474976710656\r\n"
    scanner = ReplyScanner()
    with pytest.raises(ProtocolError):
        scanner.scan(header * 100_000, 0, len(header) * 100_000, 1)


def test_deep_nesting_costs_no_stack() -> None:
    data = b"*1\r\n" * 100_000 + b":1\r\n"
    assert _boundaries(data) == [len(data)]


def test_inside() -> None:
    data = b"*2\r\n:1\r\n$2\r\nab\r\n"
    scanner = ReplyScanner()
    for size in range(1, len(data)):
        assert scanner.scan(data, size - 1, size, 5) == size
        assert scanner.inside
        assert scanner.whole == 0
    assert scanner.scan(data, len(data) - 1, len(data), 5) == len(data)
    assert not scanner.inside
    assert scanner.whole == 1


def test_a_push_is_told_apart_although_nothing_is_wanted() -> None:
    data = b">1\r\n+a\r\n+OK\r\n"
    scanner = ReplyScanner()
    assert scanner.scan(data, 0, len(data), 0) == 8
    assert (scanner.push, scanner.whole) == (True, 0)
    assert scanner.scan(data, 8, len(data), 0) == 8
    assert (scanner.push, scanner.whole, scanner.inside) == (False, 0, False)


def test_what_has_been_passed_is_never_looked_at_again() -> None:
    # Ruined behind the scanner's back: if it went back, it would see it.
    data = bytearray(b"*3\r\n$40\r\n" + b"x" * 40 + b"\r\n%1\r\n+k\r\n:12345\r\n$3\r\nabc\r\n")
    scanner = ReplyScanner()
    for size in range(1, len(data) + 1):
        assert scanner.scan(data, size - 1, size, 1) == size
        data[size - 1] = 0
    assert scanner.whole == 1


def test_a_request_is_framed_too() -> None:
    data = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n*1\r\n"
    assert _boundaries(data * 2) == [len(data), 2 * len(data)]
