"""What the proxy answers itself has the server's bytes and its place in the reply order."""

from __future__ import annotations

import re

import pytest
from raw import Raw, bulk, conversation, encode
from servers import Proxy, RedisServer

Command = tuple[bytes | str | int, ...]

COMMANDS: dict[str, tuple[Command, ...]] = {
    "hello": (("HELLO",), ("HELLO", 2), ("HELLO", 3), ("HELLO",), ("HELLO", "2"), ("HELLO", "3")),
    "hello setname": (("HELLO", 3, "SETNAME", "me"), ("CLIENT", "GETNAME"), ("HELLO", 2)),
    "hello lower case": (("hello", 3, "setname", "me"), ("client", "getname")),
    "hello bad version": (
        ("HELLO", 3),
        ("HELLO", 4),
        ("HELLO", 1),
        ("HELLO", "x"),
        ("HELLO", "03"),
    ),
    "hello empty": (("HELLO", ""), ("HELLO", -3), ("HELLO", "3 "), ("HELLO", 2**64)),
    "hello bad option": (("HELLO", 3, "WHAT"), ("HELLO", 3, "SETNAME"), ("CLIENT", "GETNAME")),
    "hello bad name": (("HELLO", 3, "SETNAME", "a b"), ("CLIENT", "GETNAME")),
    "hello bad auth": (("HELLO", 3, "AUTH", "no", "body"), ("HELLO", 3, "AUTH", "x")),
    "hello half way": (
        ("HELLO", 3, "SETNAME", "kept", "AUTH", "no", "body"),
        ("CLIENT", "GETNAME"),
    ),
    "hello then maps": (
        ("HGETALL", "h"),
        ("HELLO", 3),
        ("HGETALL", "h"),
        ("HELLO", 2),
        ("GET", "x"),
    ),
    "setname": (("CLIENT", "SETNAME", "a"), ("CLIENT", "GETNAME"), ("CLIENT", "SETNAME", "b")),
    "setname bad": (
        ("CLIENT", "SETNAME", "a b"),
        ("CLIENT", "SETNAME", "a\n"),
        ("CLIENT", "GETNAME"),
    ),
    "setname bytes": (
        ("CLIENT", "SETNAME", b"\xff"),
        ("CLIENT", "SETNAME", b"\0"),
        ("CLIENT", "SETNAME", "~!"),
    ),
    "setname empty": (
        ("CLIENT", "SETNAME", "a"),
        ("CLIENT", "SETNAME", ""),
        ("CLIENT", "GETNAME"),
    ),
    "getname resp3": (
        ("HELLO", 3),
        ("CLIENT", "GETNAME"),
        ("CLIENT", "SETNAME", "x"),
        ("CLIENT", "GETNAME"),
    ),
    "client arity": (
        ("CLIENT",),
        ("CLIENT", "SETNAME"),
        ("CLIENT", "GETNAME", "x"),
        ("CLIENT", "NOSUCH"),
    ),
    "setinfo": (
        ("CLIENT", "SETINFO", "LIB-NAME", "lib"),
        ("CLIENT", "SETINFO"),
        ("CLIENT", "SETINFO", "a", "b"),
    ),
    "select": (
        ("SELECT", 1),
        ("GET", "db"),
        ("SELECT", 0),
        ("GET", "db"),
        ("SELECT", 9),
        ("SELECT", 9),
    ),
    "select bad": (("SELECT", 16), ("SELECT", -1), ("SELECT", "x"), ("SELECT", ""), ("GET", "db")),
    "select odd": (
        ("SELECT", "01"),
        ("SELECT", "1 "),
        ("SELECT", "+1"),
        ("SELECT", 2**31),
        ("GET", "db"),
    ),
    "select huge": (("SELECT", 2**63), ("SELECT", 10**9), ("SELECT", "9" * 30), ("GET", "db")),
    "select arity": (("SELECT",), ("SELECT", 1, 2), ("GET", "db")),
    "select same": (("SELECT", 0), ("SELECT", 0), ("GET", "db")),
    "reset": (
        ("SELECT", 1),
        ("CLIENT", "SETNAME", "me"),
        ("HELLO", 3),
        ("RESET",),
        ("CLIENT", "GETNAME"),
        ("GET", "db"),
        ("HGETALL", "h"),
    ),
    "reset arity": (("SELECT", 1), ("RESET", "x"), ("GET", "db")),
    "reset twice": (("RESET",), ("reset",), ("SELECT", 1), ("ReSeT",), ("GET", "db")),
    "quit": (("QUIT",),),
    "quit with arguments": (("quit", "now", "please"),),
}

AROUND: tuple[Command, ...] = (
    ("PING",),
    ("GET", "db"),
    ("LRANGE", "list", 0, -1),
    ("NOSUCH", "command"),
    ("CLIENT", "GETNAME"),
    ("HGETALL", "h"),
)


@pytest.fixture(scope="module", autouse=True)
def _data(any_server: RedisServer) -> None:
    with any_server.client() as client:
        for db in range(16):
            client.ask("SELECT", db)
            client.ask("SET", "db", db)
            client.ask("RPUSH", "list", *range(50))
            client.ask("HSET", "h", "a", 1, "b", 2)


def without_id(data: bytes) -> bytes:
    """Connections have different ids on purpose."""
    return re.sub(rb"\$2\r\nid\r\n:\d+\r\n", b"$2\r\nid\r\n:ID\r\n", data)


def frames(*commands: Command) -> bytes:
    return b"".join(encode(*command) for command in commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_in_every_place_of_a_pipeline(any_server: RedisServer, any_proxy: Proxy, name: str) -> None:
    for place in range(len(AROUND) + 1):
        data = frames(*AROUND[:place], *COMMANDS[name], *AROUND[place:])
        direct = without_id(conversation(any_server.tcp, data))
        assert without_id(conversation(any_proxy.tcp, data)) == direct, place
        assert direct


@pytest.mark.parametrize("name", [name for name in COMMANDS if not name.startswith("quit")])
def test_between_round_trips(any_server: RedisServer, any_proxy: Proxy, name: str) -> None:
    commands = (*AROUND, *COMMANDS[name], *AROUND)
    found = []
    for client in (any_server.client(), any_proxy.client()):
        replies = []
        for command in commands:
            client.send(frames(command, ("ECHO", "--end--")))
            replies.append(without_id(client.until(bulk("--end--"))))
        found.append(replies)
    assert found[1] == found[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_inline(any_server: RedisServer, any_proxy: Proxy, name: str) -> None:
    def quoted(argument: bytes | str | int) -> bytes:
        raw = argument if isinstance(argument, bytes) else str(argument).encode()
        return b'"' + b"".join(b"\\x%02x" % byte for byte in raw) + b'"'

    commands = (*AROUND, *COMMANDS[name], *AROUND)
    data = b"".join(b" ".join(map(quoted, command)) + b"\r\n" for command in commands)
    direct = without_id(conversation(any_server.tcp, data))
    assert without_id(conversation(any_proxy.tcp, data)) == direct


def test_what_follows_quit_is_ignored(any_server: RedisServer, any_proxy: Proxy) -> None:
    with any_proxy.client() as client:
        client.send(frames(("ECHO", "x"), ("QUIT",), ("SET", "after-quit", 1)) + b"*1\r\n!garbage")
        assert client.rest() == bulk("x") + b"+OK\r\n"
    with any_proxy.client() as client:
        client.send(frames(("LRANGE", "list", 0, -1), ("QUIT",)) + b"x" * 1_000_000)
        assert client.rest().endswith(b"49\r\n+OK\r\n")
    assert any_server.ask("EXISTS", "after-quit") == 0


def test_ids_differ(any_proxy: Proxy) -> None:
    """And none is that of a connection of the server's."""
    clients = [any_proxy.client() for _ in range(5)]
    for client in clients:
        client.send(encode("HELLO", 2))
    found = [dict(zip(*[iter(client.reply())] * 2, strict=True))[b"id"] for client in clients]
    assert len(set(found)) == len(found)
    assert min(found) > 2**32
    again = clients[0].ask("HELLO", 3)
    assert again[b"id"] == found[0]


def test_a_pool_for_each_state_in_one_pipeline(any_server: RedisServer, any_proxy: Proxy) -> None:
    """Databases and RESP versions change again and again, with everything due."""
    commands: list[Command] = []
    for turn in range(60):
        commands += [("SELECT", turn % 5), ("GET", "db"), ("HELLO", 2 + turn % 2)]
        commands += [("HGETALL", "h"), ("GET", "none"), ("CLIENT", "SETNAME", f"n{turn}")]
        commands += [("CLIENT", "GETNAME")]
    data = frames(*commands)
    direct = without_id(conversation(any_server.tcp, data))
    assert without_id(conversation(any_proxy.tcp, data)) == direct


def test_the_state_goes_along_to_a_link_of_its_own(
    any_server: RedisServer, any_proxy: Proxy
) -> None:
    found = []
    for address in (any_server.tcp, any_proxy.tcp):
        with Raw(address) as client:
            before: tuple[Command, ...] = (
                ("HELLO", 3),
                ("SELECT", 7),
                ("CLIENT", "SETNAME", "goes-along"),
            )
            after: tuple[Command, ...] = (
                ("WATCH", "x"),
                ("HGETALL", "h"),
                ("GET", "db"),
                ("CLIENT", "GETNAME"),
            )
            client.send(frames(*before, *after))
            client.half_close()
            found.append(without_id(client.rest()))
    assert found[1] == found[0]
