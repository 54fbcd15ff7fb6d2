"""Malformed frames: the server's own bytes and ending, and nobody else is touched by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from raw import Raw, bulk, conversation, encode, eventually
from servers import Proxy, RedisServer

PING = encode("PING")

FRAMES = [
    # The multibulk header
    b"*0\r\n",
    b"*-1\r\n",
    b"*-5\r\n",
    b"*+1\r\n",
    b"*01\r\n",
    b"* 1\r\n",
    b"*1 \r\n",
    b"*1x\r\n",
    b"*\r\n",
    b"*x\r\n",
    b"*-\r\n",
    b"*--1\r\n",
    b"*-0\r\n",
    b"*00\r\n",
    b"*0x1\r\n",
    b"*1.0\r\n",
    b"*1048576\r\n",
    b"*1048577\r\n",
    b"*2147483647\r\n",
    b"*2147483648\r\n",
    b"*9223372036854775807\r\n",
    b"*9223372036854775808\r\n",
    b"*-9223372036854775808\r\n",
    b"*-9223372036854775809\r\n",
    b"*18446744073709551617\r\n",
    b"*1\0\r\n",
    b"*1\r",
    b"*1",
    b"*",
    # The bulk header
    b"*1\r\n+PING\r\n",
    b"*1\r\n:1\r\n",
    b"*1\r\n\r\n",
    b"*1\r\n\n",
    b"*1\r\n+",
    b"*1\r\n$-1\r\n",
    b"*1\r\n$-0\r\n",
    b"*1\r\n$-5\r\n",
    b"*1\r\n$0\r\n\r\n",
    b"*1\r\n$x\r\n",
    b"*1\r\n$\r\n",
    b"*1\r\n$536870912\r\n",
    b"*1\r\n$536870913\r\n",
    b"*1\r\n$ 4\r\nPING\r\n",
    b"*1\r\n$4 \r\nPING\r\n",
    b"*1\r\n$04\r\nPING\r\n",
    b"*1\r\n$+4\r\nPING\r\n",
    b"*1\r\n$4x\r\nPING\r\n",
    b"*1\r\n$9223372036854775807\r\n",
    b"*1\r\n$9223372036854775808\r\n",
    b"*1\r\n$18446744073709551620\r\nPING\r\n",
    b"*1\r\n*1\r\n",
    b"*1\r\n\0\r\n",
    b"*1\r\n\xff\r\n",
    b"*1\r\n'\r\n",
    b'*1\r\n"\r\n',
    b"*1\r\n\\\r\n",
    b"*2\r\n$4\r\nECHO\r\n$-1\r\n",
    b"*2\r\n$4\r\nECHO\r\n+hi\r\n",
    b"*2\r\n$4\r\nECHO\r\n$\0\r\nhi\r\n",
    b"*2\r\n$0\r\n\r\n$1\r\na\r\n",
    b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$x\r\n",
    # A CR without its LF, an LF without a CR
    b"*1\rX$4\r\nPING\r\n",
    b"*1\r\r$4\r\nPING\r\n",
    b"*1\r\n$4\rXPING\r\n",
    b"*1\r\n$4\r\nPINGXX",
    b"*1\r\n$4\r\nPING\n\r",
    b"*1\r\n$4\r\nPING\rX",
    b"*1\r\n$4\r\nPING\n\n",
    b"*1\n$4\nPING\n",
    b"*1\n$4\r\nPING\r\n",
    b"*1\r\n$4\nPING\r\n",
    b"*1\r\n$4\r\nPINGER\r\n",
    b"*1\r\n$4\r\nPI\r\n\r\n",
    # Inline
    b"\r\n",
    b" \t \n",
    b"ping",
    b"  PING  \r\n",
    b"PING hello world\r\n",
    b'PING "hello world"\r\n',
    b"PING 'it\\'s'\r\n",
    b"PING 'a\\nb'\r\n",
    b'PING "a\\nb\\r\\t\\b\\a\\\\\\"\\q"\r\n',
    b'PING "unbalanced\r\n',
    b"PING 'unbalanced\r\n",
    b'PING "a"b\r\n',
    b"PING 'a'b\r\n",
    b'PING a"b"\r\n',
    b'PING ""\r\n',
    b'"PI\\x4eG"\r\n',
    b'"PI\\x4"\r\n',
    b'"PI\\xZZ"\r\n',
    b"'PI\\x4eG'\r\n",
    b'""\r\n',
    b"'' x\r\n",
    b"PI\0NG\r\n",
    b'PING "a\0b"\r\n',
    b"\0\r\n",
    b"PING\rX\n",
    b"PING a\rb\r\n",
    b"PING\r\r\n",
    b"PING\x0bhi\r\n",
    b'PING "a"\x0bb\r\n',
    b"\x0b\x0cPING\r\n",
    b"PING \xff\x80\r\n",
    b"$4\r\n",
    b"+PING\r\n",
    b"-ERR\r\n",
    b":1\r\n",
    b"%1\r\n",
    b">1\r\n",
    encode("Host"),
    b"GET / HTTP/1.1\r\n",
]


# For Redis an attempt to make a browser talk to it: it closes at once, and forgets what was due.
HTTP = [
    b"POST / HTTP/1.1\r\n",
    b"Host: here\r\n",
    encode("pOsT"),
    encode("host:", "x"),
]

# Lines that never end; with the error that they get once they are too long.
ENDLESS = {
    "multibulk": (b"*", b"1", b"too big mbulk count string"),
    "bulk": (b"*1\r\n$", b"1", b"too big bulk count string"),
    "bulk without $": (b"*1\r\n", b"+", b"too big bulk count string"),
    "line feeds": (b"*1\r\n$", b"\n", b"too big bulk count string"),
    "inline": (b"", b"x", b"too big inline request"),
    "nul": (b"", b"\0\n", b"too big inline request"),
    "nul in a bulk": (b"*1\r\n$", b"\0\r\n", b"too big bulk count string"),
}
LINE_LIMIT = 65536


def shown(frame: bytes) -> str:
    text = repr(frame)[2:-1]
    return text if len(text) < 40 else f"{text[:30]}...{len(frame)}"


def bystander(proxy: Proxy) -> Raw:
    client = proxy.client()
    assert client.ask("ECHO", "before") == b"before"
    return client


@pytest.fixture(scope="module")
def one_link(any_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(any_server.url, connections=1) as proxy:
        yield proxy


@pytest.mark.parametrize("frame", FRAMES, ids=shown)
def test_same_bytes_and_ending_as_direct(
    any_server: RedisServer, one_link: Proxy, frame: bytes
) -> None:
    """Alone, with a good command in the same write behind it, before it, or both."""
    other = bystander(one_link)
    links = any_server.links()
    for before, after in ((b"", b""), (b"", PING), (PING, b""), (encode("ECHO", "x"), PING)):
        data = before + frame + after
        assert conversation(one_link.tcp, data) == conversation(any_server.tcp, data)
        assert other.ask("ECHO", "undisturbed") == b"undisturbed"
    assert any_server.links() == links


@pytest.mark.parametrize("frame", FRAMES, ids=shown)
def test_inside_a_transaction(any_server: RedisServer, one_link: Proxy, frame: bytes) -> None:
    other = bystander(one_link)
    links = any_server.links()
    data = encode("MULTI") + frame + encode("EXEC") + PING
    assert conversation(one_link.tcp, data) == conversation(any_server.tcp, data)
    assert other.ask("ECHO", "undisturbed") == b"undisturbed"
    assert any_server.links() == links


@pytest.mark.parametrize("frame", [frame for frame in FRAMES if 1 < len(frame) < 100], ids=shown)
def test_in_two_writes(any_server: RedisServer, one_link: Proxy, frame: bytes) -> None:
    """Split at every byte: the second part comes when the first has been read."""
    expected = conversation(any_server.tcp, frame + PING)
    other = bystander(one_link)
    for at in range(1, len(frame)):
        with one_link.client() as client:
            client.send(frame[:at])
            assert other.ask("ECHO", at) == b"%d" % at
            try:
                client.send(frame[at:] + PING)
                client.half_close()
            except OSError:  # the first part was refused already
                pass
            assert client.rest() == expected, at


@pytest.mark.parametrize("frame", HTTP, ids=shown)
def test_http_is_closed_without_an_answer(
    any_server: RedisServer, one_link: Proxy, frame: bytes
) -> None:
    other = bystander(one_link)
    links = any_server.links()
    for data in (frame, frame + PING, encode("MULTI") + frame + encode("EXEC")):
        assert conversation(one_link.tcp, data) == conversation(any_server.tcp, data)
    assert other.ask("ECHO", "undisturbed") == b"undisturbed"
    assert any_server.links() == links


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_lines(any_server: RedisServer, one_link: Proxy, name: str) -> None:
    """Up to the limit the server waits on; beyond it, it gives up."""
    start, filler, error = ENDLESS[name]
    other = bystander(one_link)
    links = any_server.links()
    line = len(start.rpartition(b"\n")[2])
    for length in (LINE_LIMIT // 2, LINE_LIMIT - line):
        data = start + (filler * length)[:length]
        assert conversation(any_server.tcp, data) == b""
        assert conversation(one_link.tcp, data) == b""
    data = start + filler * (LINE_LIMIT + 100_000)
    expected = b"-ERR Protocol error: " + error + b"\r\n"
    assert conversation(any_server.tcp, data) == expected
    assert conversation(one_link.tcp, data) == expected
    assert conversation(one_link.tcp, PING + data) == b"+PONG\r\n" + expected
    assert conversation(one_link.tcp, encode("MULTI") + data) == b"+OK\r\n" + expected
    assert other.ask("ECHO", "undisturbed") == b"undisturbed"
    assert any_server.links() == links


def test_replies_due_come_before_the_error(one_link: Proxy) -> None:
    count = 5000
    with one_link.client() as client:
        client.send(b"".join(encode("ECHO", n) for n in range(count)) + b"*1\r\n!\r\n" + PING)
        expected = b"".join(bulk(str(n)) for n in range(count))
        assert client.rest() == expected + b"-ERR Protocol error: expected '$', got '!'\r\n"


def test_before_authentication() -> None:
    """The limits are tighter, and a right password lifts them in the middle of a pipeline."""
    with RedisServer(None, "--requirepass", "secret") as server, Proxy(server.url) as proxy:
        auth = encode("AUTH", "secret")
        for data in (
            PING,
            encode(*"abcdefghijk"),
            encode(*"abcdefghij"),
            encode("ECHO", "x" * 16384),
            encode("ECHO", "x" * 16385),
            auth + encode("MSET", *"abcdefghijkl"),
            auth + encode("ECHO", "x" * 16385),
            encode("AUTH", "wrong") + encode(*"abcdefghijk"),
            encode("AUTH", "wrong") + encode("GET", "x") + auth + encode("GET", "x"),
            encode("AUTH")
            + encode("AUTH", "a", "b", "c")
            + encode("AUTH", "default", "secret")
            + PING,
            encode("MULTI") + encode("GET", "x") + encode("EXEC"),
            b"*1\r\n!\r\n",
            b"PING\r\nAUTH secret\r\nPING\r\n",
            encode("RESET") + PING,
            encode("QUIT") + PING,
            encode("SELECT", 1) + encode("CLIENT", "SETNAME", "x") + encode("CLIENT", "GETNAME"),
            encode("HELLO", 3, "AUTH", "default", "wrong") + PING,
        ):
            assert conversation(proxy.tcp, data) == conversation(server.tcp, data), data[:100]


def test_a_servers_own_bulk_limit(own_server: RedisServer) -> None:
    own_server.ask("CONFIG", "SET", "proto-max-bulk-len", "1mb")
    with Proxy(own_server.url) as proxy:
        for data in (
            b"*2\r\n$4\r\nECHO\r\n$1048577\r\n",
            encode("ECHO", "x" * 1048577),
            encode("STRLEN", "x" * 1048576),
        ):
            assert conversation(proxy.tcp, data) == conversation(own_server.tcp, data)


def test_a_bulk_limit_that_was_lowered_later(own_server: RedisServer) -> None:
    """The proxy does not know of it: the server closes a shared link, and everything goes on."""
    with Proxy(own_server.url, connections=2) as proxy, proxy.client() as client:
        assert client.ask("PING") == b"PONG"
        eventually(lambda: len(own_server.links()) == 2)
        own_server.ask("CONFIG", "SET", "proto-max-bulk-len", "1mb")
        client.send(encode("ECHO", "x" * 1048577))
        assert b"invalid bulk length" in client.rest()
        with proxy.client() as another:
            assert another.ask("PING") == b"PONG"
