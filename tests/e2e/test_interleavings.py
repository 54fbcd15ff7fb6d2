"""Random interleavings of many clients: every client's replies are its own, in its own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw import Raw, bulk, encode
from servers import Proxy, RedisServer

LIST = [f"item {number}" for number in range(300)]
CLIENTS = 6
DATABASES = 4

unique = count()
Exchange = tuple[bytes, bytes]  #: what is sent, and what must come back


@pytest.fixture(scope="module")
def two_links() -> Iterator[tuple[RedisServer, Proxy]]:
    with RedisServer() as server:
        with server.client() as client:
            for db in range(DATABASES):
                client.ask("SELECT", db)
                client.ask("RPUSH", "list", *LIST)
        with Proxy(server.url, connections=2) as proxy:
            with proxy.client() as client:
                client.ask("PING")
            yield server, proxy


# What clients say: each takes a size, and makes up a value that nobody else ever sends.


def echo(size: int) -> Exchange:
    value = b"%d:" % next(unique) + b"x" * size
    return encode("ECHO", value), bulk(value)


def inline(_size: int) -> Exchange:
    value = b"%d" % next(unique)
    return b"echo  %b\r\n" % value, bulk(value)


def set_get(size: int) -> Exchange:
    key, value = next(unique), b"y" * size
    return encode("SET", key, value) + encode("GET", key), b"+OK\r\n" + bulk(value)


def increments(size: int) -> Exchange:
    key, times = next(unique), 1 + size % 20
    replies = b"".join(b":%d\r\n" % number for number in range(1, times + 1))
    return encode("INCR", key) * times, replies


def items(size: int) -> Exchange:
    found = LIST[: size % len(LIST)]
    reply = b"*%d\r\n" % len(found) + b"".join(map(bulk, found))
    return encode("LRANGE", "list", 0, len(found) - 1) if found else encode(
        "LRANGE", "no", 0, 1
    ), reply


def error(_size: int) -> Exchange:
    return encode("GET"), b"-ERR wrong number of arguments for 'get' command\r\n"


def transaction(_size: int) -> Exchange:
    value = b"%d" % next(unique)
    request = encode("MULTI") + encode("SET", value, value) + encode("GET", value) + encode("EXEC")
    return request, b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n" + bulk(value)


def watch(size: int) -> Exchange:
    request, reply = transaction(size)
    return encode("WATCH", "x") + request, b"+OK\r\n" + reply


def name(_size: int) -> Exchange:
    value = b"%d" % next(unique)
    request = encode("CLIENT", "SETNAME", value) + encode("CLIENT", "GETNAME")
    return request, b"+OK\r\n" + bulk(value)


def select(size: int) -> Exchange:
    request, reply = set_get(size)
    return encode("SELECT", size % DATABASES) + request, b"+OK\r\n" + reply


def reset(_size: int) -> Exchange:
    return encode("RESET") + encode("HGETALL", "none"), b"+RESET\r\n*0\r\n"


def large(size: int) -> Exchange:
    return set_get(1_200_000 + size)


class Talker:
    """One client: what it has said and not yet heard the answer to."""

    def __init__(self, connect: Callable[[], Raw]) -> None:
        self._connect = connect
        self._begin()

    def _begin(self) -> None:
        self._raw = self._connect()
        self._held = self._due = b""
        self._doubtful = False  # a link was killed while replies were due

    def say(self, exchanges: list[Exchange], cut: float) -> None:
        """Send these, but hold back the last part of the bytes until the next time."""
        data = self._held + b"".join(request for request, _ in exchanges)
        self._due += b"".join(reply for _, reply in exchanges)
        at = round(len(data) * cut)
        self._held = data[at:]
        self._send(data[:at])

    def _send(self, data: bytes) -> None:
        try:
            self._raw.send(data)
        except OSError:
            assert self._doubtful

    def hear(self) -> None:
        """All replies come; where a link was killed, perhaps only a part of them and the end."""
        self._send(self._held)
        self._held = b""
        if self._doubtful:
            with suppress(OSError):
                self._raw.half_close()
            assert self._due.startswith(self._raw.rest())
            self.leave(reset=False)
        else:
            self._raw.expect(self._due)
            self._due = b""

    def leave(self, reset: bool) -> None:
        """Close, whatever is due, and connect anew."""
        if reset:
            self._raw.reset()
        self._raw.close()
        self._begin()

    def link_killed(self) -> None:
        self._doubtful |= bool(self._due)


def kill_a_link(server: RedisServer, proxy: Proxy, number: int) -> None:
    """And give the proxy two turns, answered without a link, to notice."""
    links = sorted(server.links().values())
    if links:
        server.ask("CLIENT", "KILL", "ID", links[number % len(links)])
        with proxy.client() as client:
            assert client.ask("CLIENT", "GETNAME") is client.ask("CLIENT", "GETNAME") is None


KINDS = (echo, inline, set_get, increments, items, error, transaction, watch, name, select, reset)
SIZES = st.one_of(st.integers(0, 300), st.sampled_from((5_000, 70_000)))
SAYINGS = st.lists(st.tuples(st.sampled_from(KINDS), SIZES), min_size=1, max_size=12)
STEPS = st.one_of(
    st.tuples(st.just("say"), SAYINGS, st.one_of(st.just(1.0), st.floats(0, 1))),
    st.tuples(st.just("say"), SAYINGS, st.one_of(st.just(1.0), st.floats(0, 1))),
    st.tuples(st.just("say"), st.just([(large, 0), (echo, 1)]), st.sampled_from((1.0, 0.5))),
    st.tuples(st.just("hear")),
    st.tuples(st.just("leave"), st.booleans()),
    st.tuples(st.just("kill"), st.integers(0, 20)),
)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(st.tuples(st.integers(0, CLIENTS - 1), STEPS), max_size=40))
@pytest.mark.timeout(120)
def test_every_clients_replies_are_its_own(
    two_links: tuple[RedisServer, Proxy], steps: list[tuple[int, Any]]
) -> None:
    server, proxy = two_links
    talkers = [
        Talker(partial(Raw, proxy.unix if number % 2 else proxy.tcp)) for number in range(CLIENTS)
    ]
    for number, (action, *arguments) in steps:
        talker = talkers[number]
        match action:
            case "say":
                sayings, cut = arguments
                talker.say([kind(size) for kind, size in sayings], cut)
            case "hear":
                talker.hear()
            case "leave":
                talker.leave(*arguments)
            case "kill":
                kill_a_link(server, proxy, *arguments)
                for each in talkers:
                    each.link_killed()
    for talker in talkers:
        talker.hear()
        talker.leave(reset=False)
    assert proxy.alive
