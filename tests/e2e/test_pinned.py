"""Commands that need a link of their own: right answers, and no trace on the shared links."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
from raw import Raw, bulk, conversation, encode, eventually
from servers import Proxy, RedisServer

MIB = 1 << 20


@pytest.fixture(scope="module")
def one_link(module_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(module_server.url, connections=1) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _empty(module_server: RedisServer) -> None:
    module_server.ask("FLUSHALL")


@pytest.fixture
def other(one_link: Proxy) -> Raw:
    """A client on the shared link."""
    client = one_link.client()
    assert client.ask("ECHO", "shared") == b"shared"
    return client


@pytest.fixture
def client(one_link: Proxy) -> Raw:
    """A client that is on the shared link until its test pins it."""
    client = one_link.client()
    assert client.ask("PING") == b"PONG"
    return client


def blocked(server: RedisServer) -> list[dict[str, str]]:
    return [row for row in server.connections() if "b" in row["flags"]]


def test_watch(client: Raw, other: Raw) -> None:
    for interfere in (False, True):
        assert client.ask("WATCH", "balance") == b"OK"
        assert client.ask("GET", "balance") == (b"1" if interfere else None)
        if interfere:
            assert other.ask("INCR", "balance") == 2
        assert client.ask("MULTI") == b"OK"
        assert client.ask("INCR", "balance") == b"QUEUED"
        assert client.ask("EXEC") == (None if interfere else [1])
    assert other.ask("GET", "balance") == b"2"


def test_watch_in_a_pipeline(client: Raw) -> None:
    client.send(
        encode("SET", "k", 1)
        + encode("WATCH", "k")
        + encode("GET", "k")
        + encode("MULTI")
        + encode("INCR", "k")
        + encode("EXEC")
        + encode("UNWATCH")
        + encode("CLIENT", "SETNAME", "me")
        + encode("GET", "k")
    )
    expected = b"+OK\r\n+OK\r\n$1\r\n1\r\n+OK\r\n+QUEUED\r\n*1\r\n:2\r\n+OK\r\n+OK\r\n$1\r\n2\r\n"
    client.expect(expected)


def test_others_watches_are_not_touched(one_link: Proxy) -> None:
    """Each of many clients has a WATCH of its own, and only those whose key changed fail."""
    clients = [one_link.client() for _ in range(30)]
    for number, client in enumerate(clients):
        client.send(encode("WATCH", f"w{number}"))
    for client in clients:
        client.expect(b"+OK\r\n")
    with one_link.client() as writer:
        for number in range(0, 30, 2):
            assert writer.ask("SET", f"w{number}", "changed") == b"OK"
    for client in clients:
        client.send(encode("MULTI") + encode("PING") + encode("EXEC"))
    for number, client in enumerate(clients):
        client.expect(b"+OK\r\n+QUEUED\r\n")
        client.expect(b"*1\r\n+PONG\r\n" if number % 2 else b"*-1\r\n")


@pytest.mark.parametrize(
    "commands",
    [
        (("WATCH", "k"),),
        (("MULTI",), ("INCR", "pinned-n")),
        (("SUBSCRIBE", "c"),),
        (("PSUBSCRIBE", "c*"),),
        (("MONITOR",),),
        (("CLIENT", "TRACKING", "ON", "BCAST"),),
        (("CLIENT", "REPLY", "OFF"),),
        (("CLIENT", "NO-EVICT", "ON"),),
        (("CLIENT", "ID"),),
        (("WAIT", 0, 1),),
        (("READONLY",),),
        (("BLPOP", "none", 0),),
        (("BRPOPLPUSH", "none", "other", 0),),
        (("XREAD", "BLOCK", 0, "STREAMS", "none", "$"),),
        (("AUTH", "wrong"),),
        (("AUTH", "default", "wrong"),),
        (("HELLO", 3, "AUTH", "default", "wrong"),),
        (("DEBUG", "JMAP"),),
        (("CLIENT", "KILL", "ID", 0),),
        (("CLIENT", "LIST"),),
        (("CLIENT", "UNBLOCK", 0),),
        (("SCRIPT", "DEBUG", "NO"),),
        (("SCRIPT", "KILL"),),
        (("REPLCONF", "ACK", 0),),
    ],
    ids=lambda commands: " ".join(map(str, commands[0])),
)
def test_never_on_a_shared_link(
    server: RedisServer, client: Raw, other: Raw, commands: tuple[tuple[Any, ...], ...]
) -> None:
    shared = set(server.links())
    with server.monitor() as monitor, server.client() as direct:
        before = {row["addr"] for row in server.connections()}
        client.send(b"".join(encode(*command) for command in commands))

        def own() -> set[str]:
            """Connections that are new: the client's own."""
            return {row["addr"] for row in server.connections()} - before

        eventually(own)
        assert direct.ask("LPUSH", "unblocks", 1) == 1
        assert other.ask("ECHO", "undisturbed") == b"undisturbed"
        sent = {(sender, text) for sender, _, text in monitor.seen()}
    name = f'"{commands[-1][0]}"'
    assert not {sender for sender, text in sent if name in text} & shared
    assert {sender for sender, text in sent if '"undisturbed"' in text} <= shared
    client.close()
    eventually(lambda: not own())
    assert other.ask("ECHO", "undisturbed") == b"undisturbed"


# Blocking


def test_blpop(server: RedisServer, client: Raw, other: Raw) -> None:
    client.command("BLPOP", "list", 0)
    eventually(lambda: blocked(server))
    assert other.ask("RPUSH", "list", "a", "b") == 2
    assert client.reply() == [b"list", b"a"]
    assert client.ask("LLEN", "list") == 1
    assert client.ask("BLPOP", "list", 0) == [b"list", b"b"]
    assert client.ask("BLPOP", "list", "0.01") is None


def test_many_that_block(server: RedisServer, one_link: Proxy, other: Raw) -> None:
    clients = [one_link.client() for _ in range(50)]
    for number, client in enumerate(clients):
        client.command("BLPOP", f"queue{number}", 0)
    eventually(lambda: len(blocked(server)) == len(clients))
    for number in reversed(range(len(clients))):
        other.command("RPUSH", f"queue{number}", f"item{number}")
    for number, client in enumerate(clients):
        assert client.reply() == [b"queue%d" % number, b"item%d" % number]


@pytest.mark.parametrize("leave", ["close", "reset"])
def test_an_element_is_not_lost_to_a_client_that_left(
    server: RedisServer, client: Raw, other: Raw, leave: str
) -> None:
    client.command("BLPOP", "list", 0)
    eventually(lambda: blocked(server))
    getattr(client, leave)()
    eventually(lambda: not blocked(server))
    assert other.ask("RPUSH", "list", "kept") == 1
    assert other.ask("LRANGE", "list", 0, -1) == [b"kept"]


def test_a_pipeline_behind_a_blocking_command(server: RedisServer, client: Raw, other: Raw) -> None:
    client.send(
        encode("SET", "x", 1)
        + encode("BLPOP", "list", 0)
        + encode("INCR", "x")
        + encode("MULTI")
        + encode("INCR", "x")
        + encode("EXEC")
    )
    client.expect(b"+OK\r\n")
    eventually(lambda: blocked(server))
    assert other.ask("GET", "x") == b"1"
    other.ask("RPUSH", "list", "go")
    client.expect(b"*2\r\n" + bulk("list") + bulk("go"))
    client.expect(b":2\r\n+OK\r\n+QUEUED\r\n*1\r\n:3\r\n")


def test_xread(server: RedisServer, client: Raw, other: Raw) -> None:
    assert client.ask("XREAD", "COUNT", 1, "STREAMS", "stream", 0) is None
    client.command("XREAD", "BLOCK", 0, "STREAMS", "stream", "$")
    eventually(lambda: blocked(server))
    assert other.ask("XADD", "stream", "1-1", "field", "value") == b"1-1"
    assert client.reply() == [[b"stream", [[b"1-1", [b"field", b"value"]]]]]


def test_client_unblock_by_id(server: RedisServer, client: Raw, other: Raw) -> None:
    """CLIENT ID pins, so the id is that of the link that blocks."""
    ident = client.ask("CLIENT", "ID")
    client.command("BLPOP", "list", 0)
    eventually(lambda: blocked(server))
    assert other.ask("CLIENT", "UNBLOCK", ident, "ERROR") == 1
    assert str(client.reply()).startswith("UNBLOCKED")


# Publish and subscribe


def test_subscribe(client: Raw, other: Raw) -> None:
    client.send(encode("SUBSCRIBE", "a", "b") + encode("PSUBSCRIBE", "p*"))
    assert client.reply() == [b"subscribe", b"a", 1]
    assert client.reply() == [b"subscribe", b"b", 2]
    assert client.reply() == [b"psubscribe", b"p*", 3]
    assert other.ask("PUBLISH", "a", "hello") == 1
    assert other.ask("PUBLISH", "pattern", b"\r\n+OK\r\n") == 1
    assert client.reply() == [b"message", b"a", b"hello"]
    assert client.reply() == [b"pmessage", b"p*", b"pattern", b"\r\n+OK\r\n"]
    assert "only (P|S)SUBSCRIBE" in str(client.ask("GET", "x"))
    assert client.ask("PING") == [b"pong", b""]
    client.command("UNSUBSCRIBE")
    assert {bytes(client.reply()[1]) for _ in range(2)} == {b"a", b"b"}
    assert client.ask("PUNSUBSCRIBE") == [b"punsubscribe", b"p*", 0]
    assert client.ask("SET", "x", 1) == b"OK"
    assert client.ask("GET", "x") == b"1"


def test_subscribe_in_resp3(client: Raw, other: Raw) -> None:
    client.ask("HELLO", 3)
    client.send(encode("SUBSCRIBE", "a") + encode("ECHO", "between"))
    client.expect(b">3\r\n" + bulk("subscribe") + bulk("a") + b":1\r\n" + bulk("between"))
    assert other.ask("PUBLISH", "a", "hello") == 1
    client.expect(b">3\r\n" + bulk("message") + bulk("a") + bulk("hello"))
    client.send(encode("HGETALL", "none"))
    client.expect(b"%0\r\n")


def test_many_subscribers(one_link: Proxy, other: Raw) -> None:
    clients = [one_link.client() for _ in range(40)]
    for client in clients:
        client.command("SUBSCRIBE", "news")
    for client in clients:
        client.expect(b"*3\r\n" + bulk("subscribe") + bulk("news") + b":1\r\n")
    for number in range(50):
        other.command("PUBLISH", "news", f"item {number}")
    other.expect(b":40\r\n" * 50)
    expected = b"".join(
        b"*3\r\n" + bulk("message") + bulk("news") + bulk(f"item {n}") for n in range(50)
    )
    for client in clients:
        client.expect(expected)


def test_a_subscriber_that_does_not_read_stops_nobody(
    server: RedisServer, client: Raw, other: Raw, one_link: Proxy
) -> None:
    client.command("SUBSCRIBE", "flood")
    client.expect(b"*3\r\n" + bulk("subscribe") + bulk("flood") + b":1\r\n")
    server.ask("CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0")
    one_link.reset_memory()
    before = one_link.memory()
    count = 60
    with one_link.client() as publisher:
        for number in range(count):
            assert publisher.ask("PUBLISH", "flood", b"%04d" % number + b"x" * MIB) == 1
            assert other.ask("ECHO", number) == b"%d" % number
    assert one_link.memory() < before + 40 * MIB  # the server keeps the rest
    for number in range(count):
        data = bulk(b"%04d" % number + b"x" * MIB)
        client.expect(b"*3\r\n" + bulk("message") + bulk("flood") + data)


# Other states


def test_monitor(client: Raw, other: Raw) -> None:
    client.command("MONITOR")
    client.expect(b"+OK\r\n")
    assert other.ask("ECHO", "watched") == b"watched"
    assert b'"ECHO" "watched"' in client.line()


def test_client_tracking(client: Raw, other: Raw) -> None:
    client.ask("HELLO", 3)
    assert client.ask("CLIENT", "TRACKING", "ON") == b"OK"
    client.send(encode("GET", "cached"))
    client.expect(b"_\r\n")
    assert other.ask("SET", "cached", "new") == b"OK"
    client.expect(b">2\r\n" + bulk("invalidate") + b"*1\r\n" + bulk("cached"))
    client.send(encode("GET", "cached"))
    client.expect(bulk("new"))


def test_client_reply(client: Raw, other: Raw) -> None:
    client.send(
        encode("PING")
        + encode("CLIENT", "REPLY", "OFF")
        + encode("SET", "silent", 1)
        + encode("CLIENT", "REPLY", "ON")
        + encode("CLIENT", "REPLY", "SKIP")
        + encode("INCR", "silent")
        + encode("GET", "silent")
    )
    client.expect(b"+PONG\r\n+OK\r\n" + bulk("2"))
    assert other.ask("GET", "silent") == b"2"


def test_client_list_and_kill(client: Raw, other: Raw) -> None:
    client.ask("CLIENT", "SETNAME", "victim")
    ident = client.ask("CLIENT", "ID")
    assert b"name=victim" in client.ask("CLIENT", "LIST")
    assert b"name=victim" in client.ask("CLIENT", "INFO")
    assert other.ask("CLIENT", "KILL", "ID", ident) == 1
    assert client.sock.recv(1) == b""


def test_auth(own_server: RedisServer) -> None:
    own_server.ask("ACL", "SETUSER", "alice", "on", ">secret", "~alice:*", "+@all")
    with Proxy(own_server.url, connections=1) as proxy:
        with proxy.client() as client, proxy.client() as other:
            assert other.ask("SET", "public", 1) == b"OK"
            assert client.ask("AUTH", "alice", "wrong").args[0].startswith("WRONGPASS")
            assert client.ask("GET", "public") == b"1"
            assert client.ask("AUTH", "alice", "secret") == b"OK"
            assert str(client.ask("GET", "public")).startswith("NOPERM")
            assert client.ask("SET", "alice:own", 2) == b"OK"
            assert client.ask("ACL", "WHOAMI") == b"alice"
            assert other.ask("ACL", "WHOAMI") == b"default"
            client.send(encode("RESET") + encode("ACL", "WHOAMI"))
            assert [client.reply(), client.reply()] == [b"RESET", b"default"]
        with proxy.client() as client:
            hello = client.ask("HELLO", 3, "AUTH", "alice", "secret", "SETNAME", "me")
            assert hello[b"proto"] == 3
            assert client.ask("ACL", "WHOAMI") == b"alice"
            assert client.ask("CLIENT", "GETNAME") == b"me"


def test_wait_speaks_of_the_clients_own_writes(client: Raw) -> None:
    assert client.ask("SET", "key", 1) == b"OK"
    assert client.ask("WAIT", 0, 10) == 0
    assert client.ask("WAIT", 1, 10) == 0  # there is no replica


def test_reset_ends_it(client: Raw, other: Raw) -> None:
    client.ask("SELECT", 3)
    client.ask("MULTI")
    assert client.ask("SET", "k", 1) == b"QUEUED"
    assert client.ask("RESET") == b"RESET"
    assert client.ask("SET", "k", "db0") == b"OK"
    assert other.ask("GET", "k") == b"db0"


# Half-closed connections


@pytest.mark.parametrize(
    "command", [("PING",), ("WATCH", "x"), ("MULTI",), ("CLIENT", "ID"), ("BLPOP", "full", 0)]
)
def test_half_close_delivers_all_replies(
    server: RedisServer, one_link: Proxy, command: tuple[str | int, ...]
) -> None:
    server.ask("RPUSH", "full", "a")
    server.ask("SET", "value", b"z" * 10_000)  # a server drops what the socket does not take
    data = encode("ECHO", "first") + encode(*command) + encode("GET", "value") * 3
    data += encode("DISCARD") + encode("ECHO", "last")
    proxied = conversation(one_link.tcp, data)
    server.ask("RPUSH", "full", "a")
    direct = conversation(server.tcp, data)
    if command == ("CLIENT", "ID"):
        proxied, direct = (data[data.index(b"$", 12) :] for data in (proxied, direct))
    assert proxied == direct
    assert direct.endswith(bulk("last"))


def test_half_close_while_blocked_ends_it(server: RedisServer, client: Raw, other: Raw) -> None:
    client.command("BLPOP", "list", 0)
    eventually(lambda: blocked(server))
    client.half_close()
    assert client.rest() == b""
    assert other.ask("RPUSH", "list", "kept") == 1
    assert other.ask("LLEN", "list") == 1


# Limits


def test_too_many_pinned(own_server: RedisServer) -> None:
    with Proxy(own_server.url, connections=1, max_pinned=3) as proxy:
        holders = [proxy.client() for _ in range(3)]
        for holder in holders:
            assert holder.ask("WATCH", "x") == b"OK"
        with proxy.client() as client:
            client.send(encode("ECHO", "a") + encode("BLPOP", "x", 0) + encode("ECHO", "b"))
            assert client.reply() == b"a"
            error = client.reply()
            assert isinstance(error, hiredis.ReplyError)
            assert str(error).startswith("ERR resproxy: all 3 pinned links are in use")
            assert client.reply() == b"b"
            # What follows WATCH relies on it: the refusal ends the connection.
            client.send(encode("WATCH", "x") + encode("SET", "x", "unwatched"))
            assert client.line().startswith(b"-ERR resproxy: all 3 pinned links are in use")
            assert client.rest() == b""
        assert own_server.ask("EXISTS", "x") == 0
        holders.pop().close()

        def watches() -> bool:
            with proxy.client() as client:
                return bool(client.ask("WATCH", "x") == b"OK")

        eventually(watches)
        assert holders[0].ask("ECHO", "d") == b"d"


def test_a_large_request_is_refused_without_a_pinned_link(own_server: RedisServer) -> None:
    """What is left of the frame cannot be told from commands: the connection ends."""
    with Proxy(own_server.url, connections=1, max_pinned=1) as proxy:
        with proxy.client() as holder, proxy.client() as client, proxy.client() as other:
            assert holder.ask("WATCH", "x") == b"OK"
            client.send(encode("SET", "large", b"x" * 3 * MIB)[:1000])
            assert client.line().startswith(b"-ERR resproxy: all 1 pinned links are in use")
            assert client.rest() == b""
            assert other.ask("PING") == b"PONG"
        assert own_server.ask("DBSIZE") == 0
