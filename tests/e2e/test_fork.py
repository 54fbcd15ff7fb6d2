"""Processes that fork: each has a cheap connection of its own, and the server sees a few."""

from __future__ import annotations

import os
import random
import select
import time
import traceback
from collections.abc import Callable

import pytest
import redis
from raw import Raw, bulk, encode
from servers import Proxy, RedisServer

LINKS = 4


class Children:
    """Forked processes, each of which runs work(number)."""

    def __init__(self, count: int, work: Callable[[int], None]) -> None:
        self._pipes = [self._fork(number, work) for number in range(count)]

    def _fork(self, number: int, work: Callable[[int], None]) -> tuple[int, int]:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writing)
            return pid, reading
        try:
            work(number)
        except BaseException:  # noqa: BLE001 - the parent reports it
            os.write(writing, traceback.format_exc().encode()[-4000:])
        finally:
            os._exit(0)  # none of pytest's own ending

    def running(self, seconds: float) -> bool:
        """Wait that long, or until one of them ends; whether all still run."""
        return not select.select([reading for _, reading in self._pipes], [], [], seconds)[0]

    def wait(self) -> list[str]:
        """What went wrong in each of them that failed."""
        failures = []
        for pid, reading in self._pipes:
            with os.fdopen(reading, "rb") as pipe:
                if text := pipe.read().decode():
                    failures.append(text)
            os.waitpid(pid, 0)
        return failures


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_client_library_before_and_after_a_fork(own_server: RedisServer, protocol: int) -> None:
    """The parent connects, forks, and all of them go on with the same object."""
    with Proxy(own_server.url, connections=LINKS) as proxy, own_server.monitor() as monitor:
        client = redis.Redis(unix_socket_path=proxy.unix, protocol=protocol)
        assert client.set("parent", "before")

        def work(number: int) -> None:
            assert client.get("parent") == b"before"
            for turn in range(50):
                with client.pipeline(transaction=turn % 2 == 0) as pipeline:
                    pipeline.set(f"child{number}", f"{number}-{turn}")
                    pipeline.get(f"child{number}")
                    pipeline.incr(f"turns{number}")
                    assert pipeline.execute() == [True, b"%d-%d" % (number, turn), turn + 1]

        children = Children(8, work)
        for turn in range(200):
            assert client.echo(f"parent {turn}") == f"parent {turn}".encode()
        assert children.wait() == []
        assert client.get("parent") == b"before"
        client.close()
        commands = [(sender, text) for sender, _, text in monitor.seen()]
        used = {sender for sender, text in commands if '"SET"' in text or '"ECHO" "parent' in text}
        assert used <= set(own_server.links())
        assert len(own_server.links()) == LINKS
        assert sum('"INCRBY"' in text for _, text in commands) == 8 * 50


def test_raw_connections_of_a_parent_and_its_children(own_server: RedisServer) -> None:
    """Also what a child inherits stays usable for the parent, when the child closes its copy."""
    with Proxy(own_server.url, connections=LINKS) as proxy, own_server.monitor() as monitor:
        inherited = proxy.client()
        assert inherited.ask("SET", "parent", 1) == b"OK"

        def work(number: int) -> None:
            inherited.close()
            with Raw(proxy.unix) as own:
                for turn in range(100):
                    assert own.ask("ECHO", f"{number}-{turn}") == b"%d-%d" % (number, turn)

        children = Children(6, work)
        for turn in range(100):
            assert inherited.ask("ECHO", f"parent-{turn}") == b"parent-%d" % turn
        assert children.wait() == []
        assert inherited.ask("GET", "parent") == b"1"
        senders = {sender for sender, _, text in monitor.seen() if '"ECHO"' in text}
        assert senders
        assert senders <= set(own_server.links())


LIST = [f"item {number}" * (number % 7) for number in range(200)]


def talk(number: int, connections: list[Raw], until: float) -> None:
    """Pipelines on all connections at once, again and again; every reply is checked."""
    chance = random.Random(number)
    turn = 0
    while time.monotonic() < until:
        turn += 1
        expected = []
        for index, connection in enumerate(connections):
            own = f"{number}/{index}"
            requests, replies = [], []
            for part in range(chance.choice((1, 1, 3, 10, 40))):
                unique = f"{own}/{turn}/{part}/".encode()
                kind = chance.randrange(5)
                if kind == 0:
                    value = unique + b"x" * chance.choice((0, 10, 1000, 20_000))
                    requests += [encode("SET", own, value), encode("GET", own)]
                    replies += [b"+OK\r\n", bulk(value)]
                elif kind == 1:
                    last = chance.randrange(len(LIST))
                    requests.append(encode("LRANGE", "list", 0, last))
                    replies.append(b"*%d\r\n" % (last + 1) + b"".join(map(bulk, LIST[: last + 1])))
                elif kind == 2:
                    requests += [encode("MULTI"), encode("ECHO", unique), encode("EXEC")]
                    replies.append(b"+OK\r\n+QUEUED\r\n*1\r\n" + bulk(unique))
                else:
                    requests.append(encode("ECHO", unique))
                    replies.append(bulk(unique))
            connection.send(b"".join(requests))
            expected.append(b"".join(replies))
        for connection, reply in zip(connections, expected, strict=True):
            connection.expect(reply)
    assert turn > 0


@pytest.mark.timeout(90)
def test_many_processes_with_many_connections(own_server: RedisServer) -> None:
    own_server.ask("RPUSH", "list", *LIST)
    with Proxy(own_server.url, connections=LINKS) as proxy, own_server.client() as direct:
        until = time.monotonic() + 3

        def work(number: int) -> None:
            connections = [Raw((proxy.unix, proxy.tcp)[index % 2], 60) for index in range(20)]
            talk(number, connections, until)

        own = {row["addr"] for row in own_server.connections()}
        children = Children(32, work)
        most = 0
        while True:
            going_on = children.running(0.02)
            rows = [row for row in own_server.connections() if row["addr"] not in own]
            most = max(most, sum(not row["name"].startswith("resproxy-") for row in rows))
            if not going_on:
                break
        assert children.wait() == []
        assert 1 <= most <= LINKS
        assert direct.ask("DBSIZE") >= 32 * 20 // 2
