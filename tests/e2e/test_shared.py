"""Commands that need no connection state: same bytes as direct, over a few shared links."""

from __future__ import annotations

import os
import random
import shlex
import zlib
from collections.abc import Callable, Iterator

import pytest
from raw import Raw, bulk, conversation, encode, eventually
from servers import Proxy, RedisServer

# Each line is one command; deterministic on an empty database.
SCRIPT = r"""
PING | PING hello | ECHO | ECHO a b | ECHO ""
SET s value | GET s | GET missing | SETRANGE s 3 XY | GETRANGE s 0 -1 | STRLEN s | APPEND s tail
SET s v NX | SET s v XX GET | SET s v EX | SETEX s 100 v | GETDEL s | TYPE s | EXISTS s s missing
INCR n | INCRBY n 40 | INCRBYFLOAT n 0.5 | INCR n | DECR other | MSET a 1 b 2 c 3 | MGET a b nope c
RPUSH l 1 2 3 | LRANGE l 0 -1 | LRANGE none 0 -1 | LPOP l 2 | LPOP none 2 | LPOS l 3 | LLEN l
LMOVE l l2 LEFT RIGHT | LINDEX l2 0 | GET l2 | RPOPLPUSH none none
HSET h f 1 g 2 | HGETALL h | HGETALL none | HGET h f | HGET h no | HMGET h f no g | HINCRBY h f 5
HRANDFIELD none 2 WITHVALUES | HKEYS h | HSCAN h 0
SADD set one | SMEMBERS set | SMEMBERS none | SISMEMBER set one | SMISMEMBER set one two | SPOP none
ZADD z 1 a 2.5 b inf c | ZSCORE z b | ZSCORE z no | ZRANGE z 0 -1 WITHSCORES | ZPOPMIN z
ZADD z GT INCR 3 a | ZADD z XX INCR 3 none | ZMSCORE z a no b | ZRANDMEMBER none | ZSCAN z 0
XADD x 1-1 f v | XADD x 1-1 f v | XLEN x | XRANGE x - + | XREAD COUNT 1 STREAMS x 0
XREAD STREAMS x $ | XGROUP CREATE x g 0 | XREADGROUP GROUP g me STREAMS x > | XPENDING x g
XINFO GROUPS x | XACK x g 1-1
PFADD pf a b | PFCOUNT pf | SETBIT bits 7 1 | BITCOUNT bits | BITPOS bits 1 | BITFIELD bits GET u8 0
GEOADD geo 13.361389 38.115556 P | GEOPOS geo P none | GEODIST geo P none | GEOHASH geo P
EXPIRE a 1000 | TTL none | PERSIST a | RENAME none x | COPY a a2 | SORT l2 | OBJECT ENCODING l2
PUBLISH nobody hello | DBSIZE | KEYS a* | SCAN 0 MATCH nothing* | DEL a b | UNLINK c | TOUCH none
COMMAND COUNT | COMMAND GETKEYS SET k v | MEMORY HELP | XGROUP HELP | CLIENT HELP | CLIENT | CONFIG
CONFIG GET maxmemory-policy | CONFIG GET nothing | SCRIPT EXISTS 00 | LATENCY HISTOGRAM none
EVAL "return 1" 0 | EVAL "return {1,'two',{3,{}},false,nil}" 0
EVAL "return redis.error_reply('MY')" 0
EVAL "redis.setresp(3) return redis.call('HGETALL', KEYS[1])" 1 h
EVAL "redis.setresp(3) return {double=3.25}" 0 | EVAL "redis.setresp(3) return {map={a=1}}" 0
EVAL "redis.setresp(3) return {set={a=true}}" 0 | EVAL "redis.setresp(3) return true" 0
EVAL "redis.setresp(3) return {big_number='1234567890123456789012345'}" 0 | EVAL "return err" 0
EVAL "redis.setresp(3) return {verbatim_string={string='text',format='txt'}}" 0 | EVALSHA 00 0
GET | GET a b | SET a | SET a b c d | NOSUCH | nosuch "a b" c | NOSUCHCOMMANDWITHALONGNAME x y z
EXEC | DISCARD | EXEC now | UNLINK | XREAD | XREAD STREAMS | OBJECT NOSUCH x | OBJECT
"""


def script() -> list[bytes]:
    """The commands of SCRIPT, as frames."""
    lines = SCRIPT.strip().replace("\n", " | ").split(" | ")
    return [encode(*shlex.split(line, posix=True)) for line in lines]


def answers(client: Raw, data: bytes, resp: int = 2) -> bytes:
    """All that comes back for `data`, in this RESP version."""
    with client:
        if resp == 3:
            client.ask("HELLO", 3)
        client.send(data)
        client.half_close()
        return client.rest()


@pytest.mark.parametrize("resp", [2, 3])
@pytest.mark.parametrize("listener", ["tcp", "unix"])
def test_same_bytes_as_direct(
    any_server: RedisServer, any_proxy: Proxy, listener: str, resp: int
) -> None:
    data = b"".join(script())
    any_server.ask("FLUSHALL")
    direct = answers(any_server.client(), data, resp)
    any_server.ask("FLUSHALL")
    proxied = answers(Raw(getattr(any_proxy, listener)), data, resp)
    assert proxied == direct
    assert len(direct) > 5000


@pytest.mark.parametrize("resp", [2, 3])
def test_same_bytes_one_command_at_a_time(
    any_server: RedisServer, any_proxy: Proxy, resp: int
) -> None:
    found = []
    for client in (any_server.client(), any_proxy.client()):
        any_server.ask("FLUSHALL")
        with client:
            client.ask("HELLO", resp)
            replies = []
            for frame in script():
                client.send(frame + encode("ECHO", "--end--"))
                replies.append(client.until(bulk("--end--")))
            found.append(replies)
    assert found[1] == found[0]


def test_split_at_every_byte(server: RedisServer, proxy: Proxy) -> None:
    """The second part comes when the first has been read, since a round trip is between them."""
    data = (
        encode("SET", "key", "12\r\n$3\r\n")
        + b"GET key\r\n"
        + b"*0\r\n\r\n"
        + encode("gEt", "key")
        + encode("CLIENT", "SETNAME", "me")
        + encode("NoSuch", "\0\r\n")
        + encode("MULTI")
        + encode("LPUSH", "list", "a")
        + encode("LPOP", "list")
        + encode("EXEC")
        + encode("CLIENT", "GETNAME")
        + b'ECHO "in line"\r\n'
        + encode("ECHO", "")
    )
    expected = conversation(server.tcp, data)
    for at in range(1, len(data)):
        with proxy.client() as client, proxy.client() as other:
            client.send(data[:at])
            assert other.ask("ECHO", at) == b"%d" % at
            client.send(data[at:])
            client.half_close()
            assert client.rest() == expected, at


def test_many_commands_in_one_pipeline(proxy: Proxy) -> None:
    count = 100_000
    with proxy.client() as client:
        client.send(b"".join(encode("ECHO", n) for n in range(count)))
        client.expect(b"".join(bulk(str(n)) for n in range(count)))


def test_inline_commands(any_server: RedisServer, any_proxy: Proxy) -> None:
    data = b"".join(
        (
            b"FLUSHALL\r\n",
            b"ping\n",
            b"  SET   key  \t value \r\n",
            b"GET key\r\n",
            b"\r\n\n \r\n",
            rb'set "a b" "line\r\n\x00\"end"' + b"\r\n",
            b"get 'a b'\n",
            b"nosuch one 'two three'\r\n",
            b"multi\r\nincr n\r\nexec\r\n",
            b"client setname me\r\nclient getname\r\n",
            b"select 1\r\nget key\r\nselect 0\r\nget key\r\n",
            encode("GET", "key"),
            b"PING a b c\r\n",
            b"quit\r\nping\r\n",
        )
    )
    assert conversation(any_proxy.tcp, data) == conversation(any_server.tcp, data)


def test_pools_are_per_database_and_resp_version(own_server: RedisServer) -> None:
    kinds = [(db, resp) for db in (0, 1, 5) for resp in (2, 3)]
    with Proxy(own_server.url, connections=2) as proxy:
        clients = {}
        for kind in kinds:
            clients[kind] = client = proxy.client()
            client.ask("HELLO", kind[1])
            client.ask("SELECT", kind[0])
        with own_server.monitor() as monitor:
            for (db, resp), client in clients.items():
                client.command("HSET", f"h{resp}", "db", db)
            for client in clients.values():
                client.expect(b":1\r\n")
            for (db, resp), client in clients.items():
                client.command("HGETALL", f"h{resp}")
                head = b"%1\r\n" if resp == 3 else b"*2\r\n"
                client.expect(head + bulk("db") + bulk(str(db)))
            commands = monitor.seen()
        links = {
            (db, resp): {at for at, of, text in commands if of == db and f'"h{resp}"' in text}
            for db, resp in kinds
        }
        assert all(links.values())
        assert sum(map(len, links.values())) == len(set.union(*links.values()))
        eventually(lambda: len(own_server.links()) == 2 * len(kinds))


def test_the_urls_database_is_the_first(server: RedisServer) -> None:
    with Proxy(f"{server.url}/3") as proxy, proxy.client() as client, server.client() as direct:
        direct.ask("SELECT", 3)
        direct.ask("SET", "where", "three")
        assert client.ask("GET", "where") == b"three"
        assert client.ask("SELECT", 0) == b"OK"
        assert client.ask("GET", "where") is None
        assert client.ask("RESET") == b"RESET"


def test_an_upstream_on_a_unix_socket(server: RedisServer) -> None:
    with Proxy(f"unix://{server.path}?db=2") as proxy, proxy.client() as client:
        assert client.ask("SET", "key", "value") == b"OK"
        assert client.ask("GET", "key") == b"value"
        with server.client() as direct:
            direct.ask("SELECT", 2)
            assert direct.ask("GET", "key") == b"value"


def test_program_order(proxy: Proxy) -> None:
    """Each client's counter goes up by one, whatever links its commands take."""
    chance = random.Random(1)
    clients = [proxy.client() for _ in range(40)]
    counts = [0] * len(clients)
    for _ in range(60):
        bursts = [chance.choice((0, 1, 1, 3, 50)) for _ in clients]
        for number, (client, burst) in enumerate(zip(clients, bursts, strict=True)):
            half = burst // 2
            client.send(encode("INCR", f"counter{number}") * half)
            client.send(encode("INCR", f"counter{number}") * (burst - half))
        for number, (client, burst) in enumerate(zip(clients, bursts, strict=True)):
            for _ in range(burst):
                counts[number] += 1
                client.expect(b":%d\r\n" % counts[number])
    assert sum(counts) > 1000


def test_names_in_any_case(any_server: RedisServer, any_proxy: Proxy) -> None:
    names = (
        "gEt",
        "GeT",
        "mUlTi",
        "eXeC",
        "SELect",
        "cLiEnT",
        "HellO",
        "bLpOp",
        "WaTcH",
        "UNwatch",
    )
    data = b"".join(encode(name, "0") for name in names) + encode("quIT")
    assert conversation(any_proxy.tcp, data) == conversation(any_server.tcp, data)


@pytest.mark.parametrize(
    "name", [b"", b"\0", b"a\r\nb", b"x" * 1000, b"client|id", b"get ", b"\xff\xfe", b"$3", b"*1"]
)
def test_unknown_names(any_server: RedisServer, any_proxy: Proxy, name: bytes) -> None:
    data = encode(name) + encode(name, b"a\r\n", b"\0b", "c" * 200) + encode("PING")
    assert conversation(any_proxy.tcp, data) == conversation(any_server.tcp, data)


# Large values

MIB = 1 << 20


@pytest.mark.parametrize("size", [MIB - 100, MIB, MIB + 1, 5 * MIB])
def test_large_values(server: RedisServer, proxy: Proxy, size: int) -> None:
    value = random.Random(size).randbytes(size)
    with proxy.client() as client, server.client() as direct:
        client.send(encode("SET", "large", value) + encode("STRLEN", "large"))
        client.expect(b"+OK\r\n:%d\r\n" % size)
        assert direct.ask("GET", "large") == value
        client.send(encode("GET", "large") + encode("ECHO", "behind") + encode("GET", "large"))
        client.expect(bulk(value) + bulk("behind") + bulk(value))


def test_small_commands_pass_a_large_value(proxy: Proxy) -> None:
    """While a client is half-way through a large request, others are served."""
    value = b"x" * (3 * MIB)
    frame = encode("SET", "large", value)
    with proxy.client() as slow, proxy.client() as other:
        for part in range(0, len(frame), 512 * 1024):
            slow.send(frame[part : part + 512 * 1024])
            assert other.ask("ECHO", part) == b"%d" % part
        slow.expect(b"+OK\r\n")


def test_a_large_request_borrows_a_link(own_server: RedisServer) -> None:
    """Afterwards the client is back on the shared ones, and the borrowed one is used again."""
    with Proxy(own_server.url, connections=2) as proxy, proxy.client() as client:
        assert client.ask("PING") == b"PONG"
        eventually(lambda: len(own_server.links()) == 2)
        shared = set(own_server.links())
        with own_server.monitor() as monitor:
            for number in range(5):
                assert client.ask("SET", "large", b"%d" % number + b"x" * 2 * MIB) == b"OK"
                assert client.ask("ECHO", f"between-{number}") == b"between-%d" % number
            commands = monitor.seen()
        large = {sender for sender, _, text in commands if '"SET"' in text}
        small = {sender for sender, _, text in commands if '"ECHO"' in text and "between" in text}
        assert len(large) == 1
        assert not large & shared
        assert small <= shared
        assert len(own_server.connections()) <= 2 + 1 + 1  # shared, spare and internal


def test_memory_stays_small_while_a_huge_value_passes(own_server: RedisServer) -> None:
    """To a reader that keeps up, too: it takes precedence over those that it reads from."""
    size = 200 * MIB
    chunk = bytes(range(256)) * 4096
    with Proxy(own_server.url) as proxy, proxy.client() as client:
        os.setpriority(os.PRIO_PROCESS, proxy.pid, 10)
        os.setpriority(os.PRIO_PROCESS, own_server.pid, 19)
        proxy.reset_memory()
        client.send(b"*3\r\n$3\r\nSET\r\n$4\r\nhuge\r\n$%d\r\n" % size)
        for _ in range(size // MIB):
            client.send(chunk)
        client.send(b"\r\n")
        client.expect(b"+OK\r\n")
        assert proxy.memory() < 150 * MIB
        proxy.reset_memory()
        client.command("GET", "huge")
        client.expect(b"$%d\r\n" % size)
        checksum = client.checksum(size)
        client.expect(b"\r\n")
        assert proxy.memory() < 150 * MIB
        assert checksum == zlib.crc32(chunk * (size // MIB))


# Clients that leave


def leave_mid_pipeline(client: Raw) -> None:
    client.send(b"".join(encode("ECHO", f"lost-{n}") for n in range(1000)))
    client.close()


def leave_mid_pipeline_broken(client: Raw) -> None:
    client.send(b"".join(encode("LRANGE", "list", 0, -1) for _ in range(300)))
    client.reset()


def leave_mid_frame(client: Raw) -> None:
    client.send(encode("ECHO", "lost") + encode("SET", "victim", "x" * 100)[:-50])
    client.close()


def leave_mid_large_frame(client: Raw) -> None:
    client.send(encode("SET", "victim", "x" * 2 * MIB)[:-MIB])
    client.close()


def leave_mid_reply(client: Raw) -> None:
    client.command("GET", "large")
    client.read(1000)
    client.reset()


def leave_mid_transaction(client: Raw) -> None:
    client.send(encode("MULTI") + encode("SET", "victim", "x"))
    client.close()


@pytest.mark.parametrize(
    "leave",
    [
        leave_mid_pipeline,
        leave_mid_pipeline_broken,
        leave_mid_frame,
        leave_mid_large_frame,
        leave_mid_reply,
        leave_mid_transaction,
    ],
)
def test_clients_that_leave_disturb_nobody(
    server: RedisServer, proxy: Proxy, leave: Callable[[Raw], None]
) -> None:
    server.ask("SET", "large", b"y" * 3 * MIB)
    server.ask("RPUSH", "list", *range(100))
    clients = [proxy.client() for _ in range(150)]
    for turn in range(8):
        for number, client in enumerate(clients):
            if number % 50 == 25:
                leave(proxy.client())
            client.send(
                encode("SET", f"own{number}", f"value-{turn}-{number}")
                + encode("GET", f"own{number}")
                + encode("ECHO", f"{number}-{turn}")
            )
        for number, client in enumerate(clients):
            client.expect(b"+OK\r\n" + bulk(f"value-{turn}-{number}") + bulk(f"{number}-{turn}"))
    assert server.ask("EXISTS", "victim") == 0


# Transactions


def transaction(*commands: tuple[str | int, ...]) -> bytes:
    return b"".join(encode(*command) for command in (("MULTI",), *commands, ("EXEC",)))


TRANSACTIONS = {
    "empty": transaction(),
    "plain": transaction(("SET", "a", 1), ("INCR", "a"), ("GET", "a"), ("LRANGE", "l", 0, -1)),
    "error at EXEC": transaction(("SET", "a", "x"), ("INCR", "a"), ("GET", "a")),
    "error while queueing": transaction(("SET", "a", 1), ("GET",), ("GET", "a")),
    "unknown command": transaction(("SET", "a", 1), ("NOSUCH", "x")),
    "nested": transaction(("MULTI",), ("SET", "a", 1)),
    "discarded": transaction(("SET", "a", 1), ("DISCARD",)),
    "blocking": transaction(("BLPOP", "l", 0), ("XREAD", "BLOCK", 0, "STREAMS", "x", "$")),
    "watch inside": transaction(("WATCH", "a"), ("SET", "a", 1)),
    "select inside": transaction(("SET", "a", 1), ("SELECT", 2), ("GET", "a")) + encode("GET", "a"),
    "hello inside": transaction(("HELLO", "nonsense"), ("HGETALL", "h")) + encode("HGETALL", "h"),
    "name inside": transaction(("CLIENT", "SETNAME", "me")) + encode("CLIENT", "GETNAME"),
    "reset inside": transaction(("SET", "a", 1), ("RESET",)),
    "quit inside": transaction(("SET", "a", 1), ("QUIT",)),
    "reply off inside": transaction(("CLIENT", "REPLY", "OFF"), ("GET", "a")) + encode("PING"),
    "arguments": encode("MULTI", "x") + transaction(("SET", "a", 1)) + encode("EXEC", "x"),
    "exec with arguments": encode("MULTI") + encode("SET", "a", 1) + encode("EXEC", "x"),
    "never ended": encode("MULTI") + encode("SET", "a", 1),
    "inline": b"MULTI\r\nSET a 1\r\nEXEC\r\n",
    "inline inside": encode("MULTI") + b"SET a 1\r\n" + encode("EXEC"),
    "ends inline": encode("MULTI") + encode("SET", "a", 1) + b"EXEC\r\n",
    "ignored frames inside": encode("MULTI") + b"*0\r\n\r\n" + encode("INCR", "a") + encode("EXEC"),
    "malformed inside": encode("MULTI") + encode("SET", "a", 1) + b"*1\r\n!\r\n" + encode("EXEC"),
}


@pytest.mark.parametrize("name", TRANSACTIONS)
def test_transactions_as_direct(any_server: RedisServer, any_proxy: Proxy, name: str) -> None:
    data = encode("GET", "a") + TRANSACTIONS[name] + encode("GET", "a") + TRANSACTIONS["plain"]
    found = []
    for address in (any_server.tcp, any_proxy.tcp):
        any_server.ask("FLUSHALL")
        found.append((conversation(address, data), any_server.ask("GET", "a")))
    assert found[1] == found[0]


@pytest.fixture
def one_link(own_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(own_server.url, connections=1) as proxy:
        with proxy.client() as client:
            assert client.ask("PING") == b"PONG"
        yield proxy


@pytest.mark.parametrize("name", ["empty", "plain", "error at EXEC", "error while queueing"])
def test_a_whole_transaction_is_shared(own_server: RedisServer, one_link: Proxy, name: str) -> None:
    with own_server.monitor() as monitor, one_link.client() as client, one_link.client() as other:
        for turn in range(3):
            client.send(TRANSACTIONS[name] + encode("ECHO", f"end-{turn}"))
            client.until(bulk(f"end-{turn}"))
            assert other.ask("ECHO", f"other-{turn}") == b"other-%d" % turn  # and not +QUEUED
        senders = {sender for sender, _, text in monitor.seen() if "mark" not in text}
    assert senders == set(own_server.links())
    assert len(senders) == 1


def test_a_transaction_in_pieces_has_a_link_of_its_own(
    own_server: RedisServer, one_link: Proxy
) -> None:
    with own_server.monitor() as monitor, one_link.client() as client, one_link.client() as other:
        assert client.ask("MULTI") == b"OK"
        assert other.ask("ECHO", "other") == b"other"
        assert client.ask("INCR", "counter") == b"QUEUED"
        assert other.ask("GET", "counter") is None
        assert client.ask("EXEC") == [1]
        assert other.ask("GET", "counter") == b"1"
        assert client.ask("ECHO", "mine") == b"mine"
        commands = monitor.seen()
    link = set(own_server.links())
    assert {sender for sender, _, text in commands if '"other"' in text or '"GET"' in text} == link
    assert not {sender for sender, _, text in commands if '"INCR"' in text} & link


def test_transactions_are_atomic_on_a_shared_link(one_link: Proxy) -> None:
    clients = [one_link.client() for _ in range(20)]
    data = transaction(("INCR", "c"), ("INCR", "c")) + encode("INCR", "c")
    for client in clients:
        client.send(data * 50)
    seen = set()
    for client in clients:
        for _ in range(50):
            assert [client.reply() for _ in range(3)] == [b"OK", b"QUEUED", b"QUEUED"]
            first, second = client.reply()
            assert second == first + 1
            seen |= {first, second, client.reply()}
        client.close()
    assert seen == set(range(1, 3001))


def test_a_slow_reader_stops_nobody(own_server: RedisServer, one_link: Proxy) -> None:
    """What it does not read is kept for it, and the shared link is read on."""
    own_server.ask("SET", "large", b"z" * 5 * MIB)
    with one_link.client() as slow, one_link.client() as other:
        slow.send(encode("GET", "large") * 8 + encode("ECHO", "end"))
        for turn in range(100):
            assert other.ask("ECHO", turn) == b"%d" % turn
        for _ in range(8):
            slow.expect(bulk(b"z" * 5 * MIB))
        slow.expect(bulk("end"))


def test_a_reader_that_never_reads_is_closed(server: RedisServer) -> None:
    server.ask("SET", "large", b"z" * MIB)
    with (
        Proxy(server.url, connections=1, output_pause="1mb", output_limit="8mb") as proxy,
        proxy.client() as slow,
        proxy.client() as other,
    ):
        slow.send(encode("GET", "large") * 50)
        proxy.logged("client closed: it does not read its replies")
        assert other.ask("PING") == b"PONG"
        assert len(slow.rest()) < 50 * MIB


def test_a_reader_that_takes_nothing_is_closed_in_time(server: RedisServer) -> None:
    server.ask("SET", "large", b"z" * MIB)
    with (
        Proxy(server.url, connections=1, output_pause="1mb", output_stall=0.2) as proxy,
        proxy.client() as slow,
        proxy.client() as other,
    ):
        slow.send(encode("GET", "large") * 50)
        proxy.logged("client closed: it does not read its replies")
        assert other.ask("PING") == b"PONG"
        assert len(slow.rest()) < 50 * MIB


def test_a_whole_pipeline_may_be_written_before_anything_is_read(own_server: RedisServer) -> None:
    """Redis keeps the replies meanwhile, and so must the proxy: else both sides would wait."""
    value = b"v" * 1000
    own_server.ask("SET", "key", value)
    with Proxy(own_server.url, connections=1) as proxy, proxy.client() as client:
        for _ in range(100):
            client.send(encode("GET", "key") * 1000)
        for _ in range(100):
            client.expect(bulk(value) * 1000)


def test_half_close_delivers_all_replies(server: RedisServer, proxy: Proxy) -> None:
    server.ask("SET", "large", b"z" * 3 * MIB)
    with proxy.client() as client:
        client.send(encode("GET", "large") * 5 + encode("CLIENT", "GETNAME") + encode("ECHO", "x"))
        client.half_close()
        assert client.rest() == bulk(b"z" * 3 * MIB) * 5 + b"$-1\r\n" + bulk("x")
