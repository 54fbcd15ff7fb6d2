"""What the proxy writes itself, held against hiredis and a real Redis."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import Raw
from servers import RedisServer
from strategies import payloads

from resproxy.wire import encode
from resproxy.wire.replies import ReplyScanner


def _decode(data: bytes) -> Any:
    scanner = ReplyScanner()
    assert scanner.scan(data, 0, len(data), 2) == len(data)
    assert (scanner.whole, scanner.inside) == (1, False)
    reader = hiredis.Reader(notEnoughData=...)
    reader.feed(data)
    return reader.gets()


_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | payloads
_keys = st.integers(-9, 9) | payloads
_values = st.recursive(
    _scalars,
    lambda items: st.lists(items, max_size=4) | st.dictionaries(_keys, items, max_size=3),
    max_leaves=10,
)


def _in_resp2(item: object) -> object:
    match item:
        case bool():
            return int(item)
        case list():
            return [_in_resp2(each) for each in item]
        case dict():
            return [_in_resp2(each) for pair in item.items() for each in pair]
        case _:
            return item


@settings(deadline=None)
@given(_values)
def test_values_come_back(item: object) -> None:
    assert _decode(encode.value(item, 3)) == item
    assert _decode(encode.value(item, 2)) == _in_resp2(item)


def test_values_in_bytes() -> None:
    item = {b"a": [None, True, "é", -1]}
    assert encode.value(item, 2) == b"*2\r\n$1\r\na\r\n*4\r\n$-1\r\n:1\r\n$2\r\n\xc3\xa9\r\n:-1\r\n"
    assert encode.value(item, 3) == b"%1\r\n$1\r\na\r\n*4\r\n_\r\n#t\r\n$2\r\n\xc3\xa9\r\n:-1\r\n"
    assert encode.null(2) == b"$-1\r\n"
    assert encode.null(3) == b"_\r\n"
    assert encode.bulk(b"\r\n") == b"$2\r\n\r\n\r\n"


@pytest.mark.parametrize("item", [1.5, object(), {1}, [b"a", (1,)], {b"a": 1.5}])
def test_what_has_no_form(item: object) -> None:
    with pytest.raises(TypeError, match=r"no RESP form for (float|object|set|tuple)"):
        encode.value(item, 3)


@settings(deadline=None)
@given(st.text(max_size=20) | payloads)
def test_an_error_is_one_line(text: str | bytes) -> None:
    line = encode.error(text)
    found = _decode(line)
    assert isinstance(found, hiredis.ReplyError)
    raw = text.encode() if isinstance(text, str) else text
    assert line == b"-" + raw.translate(bytes.maketrans(b"\r\n", b"  ")) + b"\r\n"


@settings(deadline=None, max_examples=50)
@given(st.lists(payloads, max_size=5))
def test_redis_reads_commands(module_server: RedisServer, arguments: list[bytes]) -> None:
    with Raw(module_server.path) as client:
        client.send(encode.command(b"DEL", b"key"))
        client.send(encode.command(b"RPUSH", b"key", b"first", *arguments))
        client.send(encode.command(b"LRANGE", b"key", b"0", b"-1"))
        client.reply()
        assert client.reply() == len(arguments) + 1
        assert client.reply() == [b"first", *arguments]
