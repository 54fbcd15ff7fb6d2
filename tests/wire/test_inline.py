"""The splitting of inline commands, held against a real Redis."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import Raw, conversation, encode
from servers import RedisServer

from resproxy import errors
from resproxy.wire.inline import split_inline

_FRAGMENTS = [
    *(b'"', b'"', b"'", b"'", b"\\", b" ", b" ", b"\t", b"\r", b"\v", b"\f", b"a", b"b", b"x"),
    *(b"\\x41", b"\\x4", b"\\xZZ", b"\\x", b"\\n", b"\\r", b"\\t", b"\\b", b"\\a", b"\\q", b"\\\\"),
    *(b'\\"', b"\\'", b'""', b"''", b'"a b"', b"'a b'", b"\xff", b"\x80", b"\x01", b"\x7f"),
]
_lines = st.lists(st.sampled_from(_FRAGMENTS), max_size=10).map(b"".join) | st.binary(
    max_size=12
).map(lambda line: line.replace(b"\n", b"").replace(b"\0", b""))
_spaces = st.lists(st.sampled_from([b" ", b"\t", b"\r", b"\v", b"\f"]), max_size=2).map(b"".join)


def _hold_against_redis(server: RedisServer, line: bytes, end: bytes) -> list[bytes] | None:
    """Redis makes the same arguments of `line`, which begins with RPUSH and a key."""
    arguments = split_inline(line + end[:-1])
    data = encode("DEL", "key") + line + end
    if arguments is None:
        replies = conversation(server.path, data)
        assert replies.endswith(b"\r\n-ERR " + errors.UNBALANCED + b"\r\n")
        return None
    assert [arguments[0].upper(), arguments[1][:3]] == [b"RPUSH", b"key"]
    with Raw(server.path) as client:
        client.send(data)
        client.reply()
        pushed = client.reply()
        values = client.ask("LRANGE", arguments[1], 0, -1)
        client.ask("DEL", arguments[1])
    if len(arguments) == 2:
        assert "wrong number of arguments" in str(pushed)
    assert values == arguments[2:]
    return arguments


@settings(deadline=None, max_examples=400)
@given(_spaces, _lines, st.sampled_from([b"\n", b"\r\n"]))
def test_redis_makes_the_same_arguments(
    any_server: RedisServer, before: bytes, line: bytes, end: bytes
) -> None:
    _hold_against_redis(any_server, before + b"RPUSH key" + line, end)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b" a b", [b"a", b"b"]),
        (b" 'a b' \"c d\"", [b"a b", b"c d"]),
        (b" a\"b c\" d'e f'", [b"ab c", b"de f"]),
        (b" \"\" ''", [b"", b""]),
        (b' "\\x41\\xff\\n\\r\\t\\b\\a\\\\\\"\\q"', [b'A\xff\n\r\t\b\a\\"q']),
        (b' "\\x4" "\\xZZ" "\\x"', [b"x4", b"xZZ", b"x"]),
        (b" 'it\\'s' '\\n' '\\\\x'", [b"it's", b"\\n", b"\\\\x"]),
        (b" '\\\\'", None),
        (b" a\vb \va\f b", [b"a\vb", b"a\f", b"b"]),
        (b" 'a'\v'b'", [b"a", b"b"]),
        (b" a\rb", [b"a", b"b"]),
        (b" a\r\r", [b"a"]),
        (b" a\\ b", [b"a\\", b"b"]),
        (b" \xc3\xa9", [b"\xc3\xa9"]),
        (b' "a', None),
        (b" 'a", None),
        (b' "a"b', None),
        (b" 'a''b'", None),
        (b' "a\\"', None),
        (b" 'a\\'", None),
        (b" 'a\\", None),
        (b' "', None),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_lines(
    any_server: RedisServer, line: bytes, expected: list[bytes] | None, end: bytes
) -> None:
    found = _hold_against_redis(any_server, b"RPUSH key" + line, end)
    assert found == (None if expected is None else [b"RPUSH", b"key", *expected])


@pytest.mark.parametrize("line", [b"", b"\r", b" ", b" \t\v\f\r"])
def test_lines_without_a_command(any_server: RedisServer, line: bytes) -> None:
    assert split_inline(line) == []
    assert conversation(any_server.path, line + b"\n" + encode("PING")) == b"+PONG\r\n"
