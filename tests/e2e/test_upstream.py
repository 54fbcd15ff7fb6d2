"""A server that is away, dies, hangs, or wants a password."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import hiredis
import pytest
from raw import Raw, bulk, conversation, encode, eventually
from servers import Proxy, RedisServer, free_port

UNREACHABLE = "ERR resproxy: no connection to "
WAIT = 0.3  # s; upstream_wait


def works(proxy: Proxy) -> bool:
    with proxy.client() as client:
        return bool(client.ask("PING") == b"PONG")


def test_started_without_a_server() -> None:
    """Errors, and never a hang, until the server is there."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}"
    with Proxy(url, connected=False, upstream_wait=WAIT, backoff_max=0.2) as proxy:
        for command in (
            ("GET", "x"),
            ("SELECT", 1),
            ("HELLO", 3),
            ("WATCH", "x"),
            ("BLPOP", "x", 0),
            ("SUBSCRIBE", "x"),
            ("AUTH", "x"),
            ("CLIENT", "ID"),
        ):
            with proxy.client() as client:
                before = time.monotonic()
                error = client.ask(*command)
                assert isinstance(error, hiredis.ReplyError)
                assert str(error).startswith(UNREACHABLE + url)
                assert time.monotonic() - before < WAIT + 2  # a loaded machine
        with proxy.client() as client:
            client.send(encode("MULTI") + encode("GET", "x") + encode("EXEC") + encode("PING"))
            assert all(str(client.reply()).startswith(UNREACHABLE) for _ in range(4))
            assert client.ask("CLIENT", "SETNAME", "local") == b"OK"
            client.send(encode("SET", "large", b"x" * 3_000_000)[:2_000_000])
            assert client.line().startswith(b"-" + UNREACHABLE.encode())
        assert proxy.alive


def test_the_server_comes_up(own_server: RedisServer) -> None:
    own_server.stop()
    with (
        Proxy(own_server.url, connected=False, upstream_wait=WAIT, backoff_max=0.1) as proxy,
        proxy.client() as client,
    ):
        assert str(client.ask("GET", "x")).startswith(UNREACHABLE)
        own_server.start()
        eventually(lambda: client.ask("GET", "x") is None)
        assert client.ask("WATCH", "x") == b"OK"
        assert client.ask("SET", "x", 1) == b"OK"


def test_a_command_waits_for_the_server(own_server: RedisServer) -> None:
    """Within upstream_wait a client sees a delay and no error."""
    own_server.stop()
    with Proxy(own_server.url, connected=False, upstream_wait=15, backoff_max=0.05) as proxy:
        commands = [encode("PING"), encode("SELECT", 1), encode("WATCH", "x"), encode("HELLO", 2)]
        clients = [proxy.client() for _ in commands]
        for client, command in zip(clients, commands, strict=True):
            client.send(command)
        proxy.logged("upstream unreachable")
        own_server.start()
        found = [client.reply() for client in clients]
        assert found[:3] == [b"PONG", b"OK", b"OK"]
        assert b"server" in found[3]


def burst(client: Raw, number: int, turn: int) -> None:
    client.send(
        b"".join(encode("ECHO", f"{number}-{turn}-{part}") for part in range(20))
        + encode("SET", f"own{number}", turn)
    )


def check(client: Raw, number: int, turn: int) -> str:
    """What became of a burst: all its own replies, an error each, or an end without a wrong one."""
    try:
        for part in range(20):
            reply = client.reply()
            if isinstance(reply, hiredis.ReplyError):
                assert str(reply).startswith(UNREACHABLE)
                continue
            assert reply == b"%d-%d-%d" % (number, turn, part)
        last = client.reply()
        assert last == b"OK" or str(last).startswith(UNREACHABLE)
    except EOFError:
        return "closed"
    return "error" if isinstance(last, hiredis.ReplyError) else "fine"


def test_the_server_is_killed_under_load(own_server: RedisServer) -> None:
    """Again and again: nobody gets a wrong reply or hangs, and all work afterwards."""
    with Proxy(own_server.url, upstream_wait=WAIT, backoff_max=0.1) as proxy:
        clients = [proxy.client() for _ in range(60)]
        outcomes = set()
        for turn in range(12):
            for number, client in enumerate(clients):
                if number == 30 and turn % 3 == 1:
                    own_server.kill()
                with suppress(OSError):  # closed since the last turn
                    burst(client, number, turn)
            for number, client in enumerate(clients):
                outcome = check(client, number, turn)
                outcomes.add(outcome)
                if outcome == "closed":
                    client.close()
                    clients[number] = proxy.client()
            if not own_server.alive:
                own_server.start()
        eventually(lambda: works(proxy))
        assert {"fine", "closed"} <= outcomes


def test_a_write_is_never_sent_twice(own_server: RedisServer) -> None:
    """The link dies while increments are due: each was done once or not at all."""
    with (
        Proxy(own_server.url, connections=1, upstream_wait=5) as proxy,
        own_server.client() as direct,
    ):
        total = 0
        for _ in range(20):
            with proxy.client() as client:
                client.ask("PING")
                client.send(encode("INCR", "n") * 200)
                for ident in own_server.links().values():
                    direct.ask("CLIENT", "KILL", "ID", ident)
                client.half_close()
                answered = client.rest().count(b"\r\n")
            count = int(direct.ask("GET", "n") or 0)
            assert total + answered <= count <= total + 200
            total = count


def test_a_lost_link_closes_only_its_waiters(own_server: RedisServer) -> None:
    """One client waits for a script that runs long on one link; the other link serves on after."""
    with Proxy(own_server.url, connections=2) as proxy, own_server.client() as direct:
        assert works(proxy)
        eventually(lambda: len(own_server.links()) == 2)
        idle = [proxy.client() for _ in range(10)]
        for client in idle:
            assert client.ask("ECHO", "before") == b"before"
        waiting = proxy.client()
        # CLIENT PAUSE keeps a write due until the link has been killed.
        assert direct.ask("CLIENT", "PAUSE", 60_000, "WRITE") == b"OK"
        waiting.command("INCR", "n")
        paused = "b"
        eventually(lambda: any(paused in row["flags"] for row in own_server.connections()))
        rows = own_server.connections()
        (busy,) = (row["id"] for row in rows if paused in row["flags"])
        for client in idle:  # they take the other link
            assert client.ask("ECHO", "meanwhile") == b"meanwhile"
        assert direct.ask("CLIENT", "KILL", "ID", busy) == 1
        assert waiting.rest() == b""
        for client in idle:
            assert client.ask("ECHO", "after") == b"after"
        assert direct.ask("CLIENT", "UNPAUSE") == b"OK"
        assert direct.ask("GET", "n") is None
        eventually(lambda: len(own_server.links()) == 2)


def works_again(client: Raw) -> bool:
    return bool(client.ask("HGETALL", "x") == {})


def test_idle_clients_survive_a_restart(own_server: RedisServer) -> None:
    with Proxy(own_server.url) as proxy:
        clients = [proxy.client() for _ in range(20)]
        for client in clients:
            client.ask("HELLO", 3)
            client.ask("SELECT", 4)
            assert client.ask("SET", "x", 1) == b"OK"
        own_server.restart()
        for client in clients:
            eventually(partial(works_again, client))
        assert clients[0].ask("SET", "x", 2) == b"OK"
        with own_server.client() as direct:
            direct.ask("SELECT", 4)
            assert direct.ask("GET", "x") == b"2"


def test_pinned_clients_end_with_the_server(own_server: RedisServer) -> None:
    with Proxy(own_server.url) as proxy, proxy.client() as client:
        assert client.ask("SUBSCRIBE", "x") == [b"subscribe", b"x", 1]
        own_server.kill()
        assert client.rest() == b""
        own_server.start()
        eventually(lambda: works(proxy))


def test_a_server_that_hangs(own_server: RedisServer) -> None:
    """As on a direct connection: replies come late, and none is lost."""
    with Proxy(own_server.url, connections=2) as proxy:
        clients = [proxy.client() for _ in range(10)]
        assert clients[0].ask("PING") == b"PONG"
        own_server.pause()
        try:
            for number, client in enumerate(clients):
                client.send(b"".join(encode("ECHO", f"{number}-{part}") for part in range(100)))
            assert clients[0].silent()
            clients.pop().close()
        finally:
            own_server.resume()
        for number, client in enumerate(clients):
            client.expect(b"".join(bulk(f"{number}-{part}") for part in range(100)))


# Passwords


def urls(server: RedisServer, credentials: str) -> tuple[str, str]:
    """Over TCP and over the Unix socket, with database 2."""
    tcp = f"redis://{credentials}@127.0.0.1:{server.port}/2"
    return tcp, f"unix://{credentials}@{server.path}?db=2"


@pytest.fixture(scope="module")
def guarded() -> Iterator[RedisServer]:
    """A server with a password."""
    with RedisServer(None, "--requirepass", "s3cret/@") as server:
        server.ask("ACL", "SETUSER", "al:ice", "on", ">p@ss", "~*", "&*", "+@all")
        yield server


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("credentials", "user"),
    [
        (":s3cret%2F%40", b"default"),
        ("default:s3cret%2F%40", b"default"),
        ("al%3Aice:p%40ss", b"al:ice"),
    ],
)
def test_user_password_and_database_in_the_url(
    guarded: RedisServer, number: int, credentials: str, user: bytes
) -> None:
    with Proxy(urls(guarded, credentials)[number]) as proxy:
        assert "ss@" not in proxy.log()
        assert "s3cret" not in proxy.log()
        with proxy.client() as client, guarded.client() as direct:
            direct.ask("SELECT", 2)
            for resp in (2, 3):
                client.ask("HELLO", resp)
                assert client.ask("ACL", "WHOAMI") == user
                assert client.ask("SET", "where", f"two-{resp}") == b"OK"
                assert direct.ask("GET", "where") == b"two-%d" % resp
            assert client.ask("WATCH", "where") == b"OK"
            assert client.ask("ACL", "WHOAMI") == user  # pinned


def test_a_wrong_password_in_the_url(guarded: RedisServer) -> None:
    url = f"redis://:hunter2@127.0.0.1:{guarded.port}"
    with Proxy(url, connected=False, upstream_wait=WAIT) as proxy, proxy.client() as client:
        for command in (("PING",), ("SELECT", 1), ("WATCH", "x")):
            error = str(client.ask(*command))
            assert error.startswith(UNREACHABLE)
            assert "WRONGPASS" in error
            assert "hunter2" not in error
        proxy.logged("upstream unreachable.*WRONGPASS")
        assert "hunter2" not in proxy.log()


def test_clients_that_authenticate_themselves(guarded: RedisServer) -> None:
    with Proxy(guarded.url) as proxy, proxy.client() as client, proxy.client() as other:
        assert str(client.ask("GET", "x")).startswith("NOAUTH")
        assert str(client.ask("AUTH", "wrong")).startswith("WRONGPASS")
        assert client.ask("AUTH", "s3cret/@") == b"OK"
        assert client.ask("SET", "x", 1) == b"OK"
        assert str(other.ask("GET", "x")).startswith("NOAUTH")
        hello = other.ask("HELLO", 3, "AUTH", "al:ice", "p@ss")
        assert hello[b"proto"] == 3
        assert other.ask("ACL", "WHOAMI") == b"al:ice"
        assert client.ask("ACL", "WHOAMI") == b"default"


def test_a_password_is_set_while_running(own_server: RedisServer) -> None:
    """Links that exist stay authenticated; new ones, after a loss, are not."""
    with Proxy(own_server.url) as proxy, proxy.client() as client:
        assert client.ask("SET", "x", 1) == b"OK"
        own_server.ask("CONFIG", "SET", "requirepass", "later")
        assert client.ask("GET", "x") == b"1"
        with own_server.client() as direct:
            direct.ask("AUTH", "later")
            direct.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            eventually(lambda: str(client.ask("GET", "x")).startswith("NOAUTH"))
            proxy.logged("needs_auth=True")
            assert client.ask("AUTH", "later") == b"OK"
            assert client.ask("GET", "x") == b"1"


def test_a_user_that_may_little() -> None:
    """CONFIG, COMMAND and CLIENT are denied to the proxy; it goes on without."""
    with RedisServer() as server:
        server.ask("ACL", "SETUSER", "low", "on", ">pw", "~*", "+get", "+set", "+ping", "+select")
        url = f"redis://low:pw@127.0.0.1:{server.port}"
        with Proxy(url) as proxy:
            data = encode("SET", "k", 1) + encode("GET", "k") + encode("DEL", "k") + encode("PING")
            proxied = conversation(proxy.tcp, data)
            direct = conversation(server.tcp, encode("AUTH", "low", "pw") + data)
            assert b"+OK\r\n" + proxied == direct
