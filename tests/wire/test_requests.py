"""The framing of requests, held against what they were made of and against a real Redis.

What keeps a shared link safe is tested last: bytes that the scanner takes for N whole commands are
N commands for Redis, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import conversation
from servers import RedisServer
from strategies import cuts, mutated, payloads

from resproxy import errors
from resproxy.commands.traits import CommandTable
from resproxy.wire import encode
from resproxy.wire.inline import split_inline
from resproxy.wire.requests import ARGUMENT_LIMIT, BULK_LIMIT, Dialect, RequestScanner, Stop

ROOMY = 1 << 40  # bytes; nothing is LARGE
BLPOP, MULTI, LONG = 1, 10, 7
LONG_NAME = b"A.MODULE.WITH.NAMES.OF.MORE.THAN.31"
NAMES = {b"BLPOP": BLPOP, b"blpop": BLPOP, b"MULTI": MULTI, b"multi": MULTI}
NAMES |= {LONG_NAME: LONG, LONG_NAME.lower(): LONG}


@dataclass
class Found:
    """What is found in a stream: `count` plain commands, and what is not plain, up to `end`."""

    count: int = 0
    end: int = 0
    specials: list[tuple[object, ...]] = field(default_factory=list)


def _scan_all(dialect: Dialect, data: bytes, ends: list[int], large: int = ROOMY) -> Found:
    """Feed a scanner as a client does: keep the unconsumed rest, and scan on when more is there."""
    scanner = RequestScanner(dialect, large)
    found = Found()
    for index, size in enumerate(ends):
        while True:
            at = found.end
            # Around the data lies what must not be looked at.
            padded = b"*\r\n" + data[at:size] + b"\r\n\0\n"
            stop = scanner.scan(padded if index % 2 else bytearray(padded), 3, 3 + size - at)
            found.count += scanner.count
            found.end = at + scanner.end - 3
            assert (scanner.count > 0) == (found.end > at)
            if stop == Stop.MORE:
                break
            scanner.rewind()
            following = at + scanner.next - 3
            match stop:
                case Stop.COMMAND:
                    what: tuple[object, ...] = (scanner.trait, scanner.argc, following)
                case Stop.INLINE | Stop.EMPTY:
                    what = (following,)
                case Stop.ERROR:
                    what = (scanner.error,)
                case Stop.LARGE:
                    what = (scanner.trait,)
                case _:
                    what = ()
            found.specials.append((Stop(stop), found.count, found.end, *what))
            if stop in (Stop.ERROR, Stop.ODD, Stop.LARGE):
                return found
            assert found.end < following <= size
            found.end = following
    return found


# Streams that are made of known parts


def _any_case(name: bytes) -> st.SearchStrategy[bytes]:
    pairs = [sorted({name[i : i + 1].upper(), name[i : i + 1].lower()}) for i in range(len(name))]
    return st.tuples(*(st.sampled_from(pair) for pair in pairs)).map(b"".join)


_PLAIN = [b"GET", b"SET", b"mget", b"Blpo", b"BLPOPS", b"MULTJ", b"\xedulti", b"", b"B", b"\r\n"]
_plain_names = st.one_of(
    *(_any_case(name) for name in _PLAIN if name.isalpha() and name.isascii()),
    st.sampled_from([*_PLAIN, LONG_NAME + b"X", LONG_NAME[:-1], b"x" * 300]),
    payloads.filter(lambda name: name.upper() not in NAMES),
)


@dataclass(frozen=True)
class Part:
    """One piece of a stream, and what the scanner must say of it."""

    data: bytes
    stop: Stop | None  # None: a plain command
    trait: int = 0
    argc: int = 0


def _command(stop: Stop | None, trait: int, name: bytes, arguments: list[bytes]) -> Part:
    return Part(encode.command(name, *arguments), stop, trait, 1 + len(arguments))


_arguments = st.lists(payloads, max_size=4)
_plain = st.builds(_command, st.none(), st.just(0), _plain_names, _arguments)
_special = st.sampled_from([(b"BLPOP", BLPOP), (b"MULTI", MULTI), (LONG_NAME, LONG)]).flatmap(
    lambda pair: st.builds(
        _command, st.just(Stop.COMMAND), st.just(pair[1]), _any_case(pair[0]), _arguments
    )
)
_empty = st.sampled_from([b"*0\r\n", b"*-1\r\n", b"*-5\r\n", b"*-999999999999999999\r\n"]).map(
    lambda data: Part(data, Stop.EMPTY)
)
_inline = st.binary(max_size=20).map(
    lambda line: Part(b"i" + line.replace(b"\n", b"").replace(b"\0", b"") + b"\n", Stop.INLINE)
)
_parts = st.lists(_plain | _plain | _plain | _special | _empty | _inline, max_size=8)


def _expected(parts: list[Part]) -> Found:
    found = Found()
    for part in parts:
        before, found.end = found.end, found.end + len(part.data)
        match part.stop:
            case None:
                found.count += 1
                continue
            case Stop.COMMAND:
                what: tuple[object, ...] = (part.trait, part.argc, found.end)
            case _:
                what = (found.end,)
        found.specials.append((part.stop, found.count, before, *what))
    return found


@settings(deadline=None, max_examples=200)
@given(_parts, st.data())
def test_runs_of_plain_commands_with_specials_between(
    parts: list[Part], draw: st.DataObject
) -> None:
    data = b"".join(part.data for part in parts)
    expected = _expected(parts)
    assert _scan_all(Dialect(NAMES), data, [len(data)]) == expected
    assert _scan_all(Dialect(NAMES), data, draw.draw(cuts(len(data)))) == expected


@settings(deadline=None, max_examples=20)
@given(_parts)
def test_a_stream_may_be_split_at_every_byte(parts: list[Part]) -> None:
    data = b"".join(part.data for part in parts)
    expected = _expected(parts)
    size = len(data)
    assert _scan_all(Dialect(NAMES), data, list(range(1, size + 1))) == expected
    for cut in range(0, size, 1 + size // 100):
        assert _scan_all(Dialect(NAMES), data, [cut, size]) == expected


@pytest.mark.parametrize("inline", [b"PING\r\n", b"\r\n", b"PING a-longer-line-than-the-frame\n"])
def test_an_inline_command_behind_a_frame_that_came_in_two_parts(inline: bytes) -> None:
    frame = encode.command(b"ECHO", b"a")
    data = frame + inline
    expected = Found(1, len(data), [(Stop.INLINE, 1, len(frame), len(data))])
    for cut in range(len(data)):
        assert _scan_all(Dialect(NAMES), data, [cut, len(data)]) == expected


def test_rewind_begins_the_frame_again() -> None:
    frame = encode.command(b"SET", b"key", b"value")
    for size in range(len(frame)):
        scanner = RequestScanner(Dialect(NAMES), ROOMY)
        assert scanner.scan(frame, 0, size) == Stop.MORE
        scanner.rewind()
        other = encode.command(b"blpop", b"0")
        assert scanner.scan(other, 0, len(other)) == Stop.COMMAND
        assert (scanner.count, scanner.trait, scanner.argc) == (0, BLPOP, 2)


# No work twice


@pytest.mark.parametrize(("step", "arguments"), [(1, 2_000), (977, 100_000)])
def test_what_has_been_passed_is_never_scanned_again(step: int, arguments: int) -> None:
    # Every argument is ruined as soon as it has been there whole: going back would show it.
    parts = [b"*%d\r\n" % arguments, b"$5\r\nbLpOp\r\n", *[b"$3\r\nabc\r\n"] * (arguments - 1)]
    data = bytearray(b"".join(parts))
    scanner = RequestScanner(Dialect(NAMES), ROOMY)
    part_ends = iter(_ends(parts))
    known, ruined = next(part_ends), 0
    for size in range(step, len(data), step):
        assert scanner.scan(data, 0, size) == Stop.MORE
        assert scanner.end == scanner.count == 0
        while known <= size and known < len(data):
            data[ruined:known] = bytes(known - ruined)
            ruined, known = known, next(part_ends)
    assert ruined > len(data) - step - 20
    assert scanner.scan(data, 0, len(data)) == Stop.COMMAND
    assert (scanner.trait, scanner.argc, scanner.next) == (BLPOP, arguments, len(data))


def _ends(parts: list[bytes]) -> Iterator[int]:
    at = 0
    for part in parts:
        at += len(part)
        yield at


def test_an_inline_line_is_searched_only_once() -> None:
    data = bytearray(b"x" * 50_000 + b"\n")
    scanner = RequestScanner(Dialect(NAMES), ROOMY)
    for size in range(100, 50_001, 100):
        assert scanner.scan(data, 0, size) == Stop.MORE
        data[size - 100 : size] = b"\n" * 100
    assert scanner.scan(data, 0, len(data)) == Stop.INLINE
    assert scanner.next == len(data)


@pytest.mark.parametrize("cut", [1, 65_535, 65_536, 65_537, 65_538])
def test_the_limit_of_an_inline_line_however_it_is_split(cut: int) -> None:
    data = b"x" * 65_536 + b"\n"
    found = Found(0, len(data), [(Stop.INLINE, 0, 0, len(data))])
    assert _scan_all(Dialect(NAMES), data, [min(cut, len(data)), len(data)]) == found
    data = b"x" + data
    refused = Found(0, 0, [(Stop.ERROR, 0, 0, b"Protocol error: too big inline request")])
    assert _scan_all(Dialect(NAMES), data, [cut, len(data)]) == refused


# What is large


@pytest.mark.parametrize("arguments", [[b"x" * 60], [b"x" * 20, b"y" * 20], [b"z"] * 10])
def test_a_frame_is_large_when_it_is_not_whole_and_known_to_be_larger(
    arguments: list[bytes],
) -> None:
    frame = encode.command(b"ECHO", *arguments)
    for large in range(len(b"*10\r\n"), len(frame) + 5):
        for size in range(1, len(frame)):
            scanner = RequestScanner(Dialect(NAMES), large)
            stop = scanner.scan(frame[:size], 0, size)
            assert stop in (Stop.MORE, Stop.LARGE)
            if size > large:
                assert stop == Stop.LARGE
            if large >= len(frame):
                assert stop == Stop.MORE
            assert (scanner.count, scanner.end) == (0, 0)
    # Its size is known from the header of its last argument on.
    scanner = RequestScanner(Dialect(NAMES), len(frame) - 1)
    size = len(frame) - len(arguments[-1]) - 2
    assert scanner.scan(frame, 0, size) == Stop.LARGE
    # And where all of it is there, nothing needs to be streamed.
    scanner = RequestScanner(Dialect(NAMES), 1)
    assert scanner.scan(frame, 0, len(frame)) == Stop.MORE
    assert (scanner.count, scanner.end) == (1, len(frame))


def test_the_trait_of_a_large_command() -> None:
    before = encode.command(b"GET", b"k")
    for start, trait in [
        (b"*2\r\n$5\r\nBlpop\r\n$999\r\n", BLPOP),
        (b"*2\r\n$3\r\nSET\r\n$999\r\n", 0),
        (b"*2\r\n$999\r\nblpop", 0),
        (b"*2000000\r\n$5\r\nblpop\r\n", 0),
        (b"*2\r\n$" + b"1" * 200, 0),
    ]:
        data = before + start
        scanner = RequestScanner(Dialect(NAMES), 100)
        # What came before leaves no trait behind.
        special = encode.command(b"MULTI")
        assert scanner.scan(special, 0, len(special)) == Stop.COMMAND
        assert scanner.scan(data, 0, len(data)) == Stop.LARGE
        assert (scanner.trait, scanner.count, scanner.end) == (trait, 1, len(before))


def test_the_limit_of_arguments() -> None:
    scanner = RequestScanner(Dialect(NAMES), ROOMY)
    for number, stop in [
        (ARGUMENT_LIMIT, Stop.MORE),
        (ARGUMENT_LIMIT + 1, Stop.LARGE),
        (2**31 - 1, Stop.LARGE),
        (2**31, Stop.ERROR),
        (10**17, Stop.ERROR),
        (2**63, Stop.ERROR),
        (2**64 + 1, Stop.ERROR),
    ]:
        header = b"*%d\r\n" % number
        scanner.rewind()
        assert scanner.scan(header, 0, len(header)) == stop, number


# The dialect


def test_the_names_of_a_dialect() -> None:
    dialect = Dialect(NAMES)
    for name in (b"blpop", b"BLPOP", b"bLpOp"):
        assert dialect.trait(name) == BLPOP
    assert dialect.trait(LONG_NAME.title()) == LONG
    for name in (b"", b"b", b"get", b"blpopp", b"xlpop", b"\x02lpop", b"Blpoq", LONG_NAME[:-1]):
        assert dialect.trait(name) == 0, name


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(payloads, st.integers(1, 20), max_size=10), payloads)
def test_every_name_is_found_and_no_other(names: dict[bytes, int], other: bytes) -> None:
    table = {name.lower(): trait for name, trait in names.items()}
    spelt = {**{name.upper(): trait for name, trait in table.items()}, **table}
    dialect = Dialect(spelt)
    for name, trait in table.items():
        if name:
            assert dialect.trait(name.swapcase()) == trait
    if other:
        assert dialect.trait(other) == table.get(other.lower(), 0)


def test_a_dialect_is_replaced_from_the_next_frame_on() -> None:
    dialect = Dialect(NAMES)
    scanner = RequestScanner(dialect, ROOMY)
    frame = encode.command(b"NEW.BLOCKING", b"x" * 13)
    assert scanner.scan(frame, 0, len(frame)) == Stop.MORE
    assert scanner.count == 1
    dialect.replace({b"NEW.BLOCKING": 3, b"new.blocking": 3}, max_bulk=12)
    assert scanner.scan(frame, 0, len(frame)) == Stop.ERROR
    assert scanner.error == b"Protocol error: invalid bulk length"
    dialect.replace({b"NEW.BLOCKING": 3, b"new.blocking": 3}, max_bulk=13)
    scanner.rewind()
    assert scanner.scan(frame, 0, len(frame)) == Stop.COMMAND
    assert (dialect.max_bulk, dialect.relay, dialect.trait(b"blpop")) == (13, False, 0)


@pytest.mark.parametrize("data", [encode.command(b"GET", b"k"), b"PING\r\n", b"*0\r\n", b"*x\r\n"])
def test_where_nothing_may_be_shared_all_is_odd(data: bytes) -> None:
    dialect = Dialect(NAMES)
    dialect.replace(NAMES, relay=True)
    scanner = RequestScanner(dialect, ROOMY)
    assert scanner.scan(data, 0, 0) == Stop.MORE
    assert scanner.scan(data, 0, len(data)) == Stop.ODD
    assert (scanner.count, scanner.end) == (0, 0)


# A real Redis


@dataclass(frozen=True)
class Verdict:
    """What the proxy makes of data: `replies` are due to data[:end], then comes `stop`."""

    replies: int
    end: int
    stop: Stop
    error: bytes = b""


REAL = Dialect(CommandTable.builtin().specials)


def _verdict(data: bytes) -> Verdict:
    scanner, at, replies = RequestScanner(REAL, ROOMY), 0, 0
    while True:
        stop = Stop(scanner.scan(data, at, len(data)))
        replies += scanner.count
        at = scanner.end
        match stop:
            case Stop.EMPTY:
                at = scanner.next
            case Stop.INLINE:
                arguments = split_inline(data[at : scanner.next - 1])
                if arguments is None:
                    return Verdict(replies, at, Stop.ERROR, errors.UNBALANCED)
                if arguments and REAL.trait(arguments[0]):
                    return Verdict(replies, at, Stop.COMMAND)
                replies += bool(arguments)
                at = scanner.next
            case Stop.ERROR:
                return Verdict(replies, at, stop, scanner.error)
            case _:
                return Verdict(replies, at, stop)
        scanner.rewind()


def _decoded(raw: bytes) -> list[Any]:
    reader = hiredis.Reader(notEnoughData=...)
    reader.feed(raw)
    found = []
    while (reply := reader.gets()) is not ...:
        found.append(reply)
    assert not reader.has_data()
    return found


def _hold_against_redis(server: RedisServer, data: bytes) -> Verdict:
    """Every conversation ends with the end of what is sent: silence is told without waiting."""
    verdict = _verdict(data)
    # What would go onto a shared link: that many replies, and the link is as good as before.
    sentinels = [b"sentinel 1", b"sentinel 2"]
    after = b"".join(encode.command(b"ECHO", sentinel) for sentinel in sentinels)
    replies = _decoded(conversation(server.path, data[: verdict.end] + after))
    assert replies[verdict.replies :] == sentinels
    if verdict.stop == Stop.ERROR:
        # That very line, and Redis is deaf to what follows. (What follows a line that is too long
        # might end it in time.)
        raw = conversation(server.path, data + after if len(data) < 1000 else data)
        line = encode.error(b"ERR " + verdict.error)
        assert raw.endswith(line)
        assert len(_decoded(raw.removesuffix(line))) == verdict.replies
    elif verdict.stop == Stop.MORE:
        # What is left is no command yet for Redis either.
        assert len(_decoded(conversation(server.path, data))) == verdict.replies
    return verdict


_GOOD = [
    *[encode.command(*words.split()) for words in (b"PING", b"echo x", b"SET k v", b"gEt k")],
    encode.command(b"MSET", b"a", b"", b"b", b"\r\n$1\r\n"),
    encode.command(b"LRANGE", b"list", b"0", b"-1"),
    encode.command(b"NO.SUCH.COMMAND", b"*1\r\n"),
    encode.command(b""),
    encode.command(b"BLPOP", b"list", b"0"),
    encode.command(b"SUBSCRIBE", b"channel"),
    *[
        b"*0\r\n",
        b"*-1\r\n",
        b"PING\r\n",
        b"ECHO 'a b'\n",
        b'SET "\\x41" "b"\r\n',
        b"\r\n",
        b"  \n",
    ],
]


@settings(deadline=None, max_examples=400)
@given(
    mutated(st.lists(st.sampled_from(_GOOD[:8]) | st.sampled_from(_GOOD), max_size=5).map(b"".join))
)
def test_mutated_frames(any_server: RedisServer, data: bytes) -> None:
    _hold_against_redis(any_server, data)


@settings(deadline=None, max_examples=400)
@given(mutated(st.lists(st.sampled_from(_GOOD), max_size=5).map(b"".join)), st.data())
def test_mutated_frames_are_the_same_however_they_are_split(
    data: bytes, draw: st.DataObject
) -> None:
    whole = _scan_all(REAL, data, [len(data)])
    assert _scan_all(REAL, data, draw.draw(cuts(len(data)))) == whole


_EDGES = [
    # Where Redis wants to see more
    (b"", Stop.MORE),
    (b"*", Stop.MORE),
    (b"*1", Stop.MORE),
    (b"*1\r", Stop.MORE),
    (b"*x", Stop.MORE),
    (b"*1\n$4\nPING\n", Stop.MORE),
    (b"*1\r\n\n", Stop.MORE),
    (b"*1\r\n+", Stop.MORE),
    (b"*1\r\n\r", Stop.MORE),
    (b"*1\r\n$", Stop.MORE),
    (b"*1\r\n$-", Stop.MORE),
    (b"*1\r\n$4\r\nPING\r", Stop.MORE),
    (b"*1\r\n$%d\r\nx" % BULK_LIMIT, Stop.MORE),
    (b"*%d\r\n" % ARGUMENT_LIMIT, Stop.MORE),
    (b"ping", Stop.MORE),
    (b"*" + b"1" * 65535, Stop.MORE),
    (b"*1\r\n$" + b"1" * 65535, Stop.MORE),
    (b"*1\r\n+" + b"1" * 65535, Stop.MORE),
    (b"x" * 65536, Stop.MORE),
    # What it skips
    (b"*0\r\n", Stop.MORE),
    (b"*-1\r\n", Stop.MORE),
    # What it refuses
    *(
        (b"*" + number + b"\r\n", Stop.ERROR)
        for number in (
            *(b"", b"+1", b"01", b" 1", b"1 ", b"1x", b"x", b"-", b"--1", b"-0", b"-01", b"1\n"),
            *(b"00", b"1.0", b"1e3", b"0x1", b"\xff", b"2147483648", b"9223372036854775808"),
            *(b"18446744073709551617", b"1" * 300, b"1" * 65000),
        )
    ),
    *(
        (b"*1\r\n$" + number + b"\r\n", Stop.ERROR)
        for number in (
            *(b"", b"+1", b"01", b" 1", b"1 ", b"1x", b"x", b"-", b"-1", b"-0", b"4\n", b"\xff"),
            *(b"%d" % (BULK_LIMIT + 1), b"9223372036854775808", b"18446744073709551617"),
            b"1" * 300,
        )
    ),
    *(
        (b"*1\r\n" + start + b"\r\n", Stop.ERROR)
        for start in (
            b"",
            b"+4",
            b"*1",
            b":1",
            b"x",
            b"\xff",
            b"\n",
            b"'",
            b'"',
            b"\\",
            b" $4",
            b"4",
        )
    ),
    (b"*1\r\n\r\n$4\r\nPING\r\n", Stop.ERROR),
    (b"*1\r\n$4\nPING\r\n", Stop.ERROR),
    (b"*2\r\n$4\r\nECHO\r\n$-1\r\n", Stop.ERROR),
    (b"*x\rX", Stop.ERROR),
    (b"*" + b"1" * 65536, Stop.ERROR),
    (b"*1\r\n$" + b"1" * 65536, Stop.ERROR),
    (b"*1\r\n+" + b"1" * 65536, Stop.ERROR),
    (b"*1\r\n$" + b"\n" * 65536, Stop.ERROR),
    (b"x" * 65537, Stop.ERROR),
    (b'PING "unbalanced\r\n', Stop.ERROR),
    (b"PING 'a'b\n", Stop.ERROR),
    # What it takes, and the proxy keeps off its shared links
    (b"*1\rX$4\r\nPING\r\n", Stop.ODD),
    (b"*1\r\r$4\r\nPING\r\n", Stop.ODD),
    (b"*1\r\n$4\rXPING\r\n", Stop.ODD),
    (b"*1\r\n$4\r\nPINGXX", Stop.ODD),
    (b"*1\r\n$4\r\nPINGX\n", Stop.ODD),
    (b"*1\r\n$4\r\nPING\n\n", Stop.ODD),
    (b"*1\r\n$4\r\nPING\n\r", Stop.ODD),
    (b"*1\r\n$4\r\nPING\rX", Stop.ODD),
    (b"*\x001\r\n", Stop.ODD),
    (b"*1\x00\r\n", Stop.ODD),
    (b"*1\r\n\x00\r\n", Stop.ODD),
    (b"*1\r\n$\x00\r\n", Stop.ODD),
    (b"*1\r\nx\x00\r\n", Stop.ODD),
    (b"PI\x00NG\r\n", Stop.ODD),
    (b"\x00", Stop.ODD),
    *(
        (start + number + b"\r\n", Stop.ODD)
        for start in (b"*", b"*1\r\n$")
        for number in (b"-1000000000000000000", b"-9223372036854775808", b"-9223372036854775809")
    ),
    (b"*%d\r\n" % (ARGUMENT_LIMIT + 1), Stop.LARGE),
]


@pytest.mark.parametrize("before", [b"", encode.command(b"PING") * 3], ids=["", "after 3"])
@pytest.mark.parametrize(
    ("data", "stop"),
    [pytest.param(*edge, id=f"{edge[0][:24]!r}:{len(edge[0])}") for edge in _EDGES],
)
def test_the_edges(any_server: RedisServer, data: bytes, stop: Stop, before: bytes) -> None:
    verdict = _hold_against_redis(any_server, before + data)
    assert verdict.stop == stop
    assert verdict.replies == (3 if before else 0)
    if len(data) < 300:
        ends = list(range(1, len(before + data) + 1))
        whole = _scan_all(REAL, before + data, [len(before + data)])
        assert _scan_all(REAL, before + data, ends) == whole
