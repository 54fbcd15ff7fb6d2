"""What the session decides, and what it remembers, held against a real Redis where one can tell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest
from raw import Raw, conversation
from servers import RedisServer

from resproxy.commands.traits import CommandTable, Trait
from resproxy.session import FIRST_ID, Decision, Route, Session
from resproxy.wire import encode

BUILTIN = CommandTable.builtin()
HOME = 3


def _decode(reply: bytes) -> Any:
    reader = hiredis.Reader(notEnoughData=...)
    reader.feed(reply)
    found = reader.gets()
    assert found is not ...
    assert not reader.has_data()
    return found


def _table(*names: str) -> CommandTable:
    """The table of a server that has these commands, `name` or `name|sub`, and nothing else."""
    subs: dict[bytes, list[object]] = {}
    for name in names:
        raw = name.encode()
        entry = [raw, -1, [], 0, 0, 0, [], [], [], []]
        subs.setdefault(raw.partition(b"|")[0], []).extend([entry] if b"|" in raw else [])
    return BUILTIN.completed([[name, -1, [], 0, 0, 0, [], [], [], subs[name]] for name in subs])


KNOWN = _table(
    *("hello", "reset", "client|setname", "client|getname", "client|setinfo", "client|new-one")
)
OLD = _table("get", "client|setname", "client|getname")


@dataclass
class Server:
    """What a session knows of its server."""

    table: CommandTable = KNOWN
    dbs: set[int] = field(default_factory=lambda: {HOME})


def _session(table: CommandTable = KNOWN, dbs: Iterable[int] = (HOME,)) -> Session:
    return Session(FIRST_ID + 7, HOME, Server(table, set(dbs)), _decode)


def _memory(session: Session) -> tuple[object, ...]:
    return session.resp, session.db, session.name, session.lib


def _route(session: Session, line: str | bytes) -> Decision:
    args = line.encode().split() if isinstance(line, str) else line.split()
    args = [b"" if arg == b"''" else arg for arg in args]
    return session.route(BUILTIN.trait(args[0]), args)


# Which route


_SHARED = [
    # Errors of the server's, which leave nothing behind
    *("multi x", "exec", "exec x", "discard", "discard x", "select", "select 1 2", "client"),
    *(
        "reset x",
        "client getname x",
        "client setname",
        "client setname a b",
        "client setname a\x7f",
    ),
    *("client setinfo lib-name", "client setinfo lib-name a b", "client setinfo lib-name a\x01"),
    *("client no-such", "client help", "CLIENT HELP"),
    # What does not block
    *("xread streams k 0", "XREAD COUNT 1 STREAMS k 0", "xread", "xread streams block 0"),
    *("xreadgroup group g c streams k >", "xreadgroup group g c noack streams block >"),
    *("xreadgroup GROUP g c COUNT 1 STREAMS k >",),
    *("script load x", "SCRIPT EXISTS x", "script flush", "script", "function list", "function"),
    *("cluster info", "cluster", "CLUSTER SLOTS"),
]

_PINNED = [
    *("watch k", "blpop k 0", "BRPOPLPUSH a b 0", "bzmpop 0 1 k min", "subscribe c", "monitor"),
    *("wait 1 0", "auth p", "auth u p", "psync ? -1", "sync", "replconf ack 0", "asking"),
    *(
        "readonly",
        "readwrite",
        "unsubscribe",
        "punsubscribe",
        "ssubscribe c",
        "shutdown",
        "debug x",
    ),
    *("waitaof 0 0 0", "psubscribe p", "sunsubscribe", "failover", "post x", "host: x"),
    *(
        "xread block 0 streams k $",
        "XREAD COUNT 1 BLOCK 0 STREAMS k $",
        "xread BLOCK 0 streams k $",
    ),
    *("xreadgroup group g c block 0 streams k >", "XREADGROUP GROUP g c NOACK BLOCK 0 STREAMS k >"),
    *(
        "xreadgroup group streams c block 0 streams k >",
        "xreadgroup group g STREAMS block 0 streams k >",
    ),
    *("script kill", "SCRIPT DEBUG yes", "function kill", "Function Stats", "cluster setslot 1"),
    *("client reply off", "CLIENT REPLY skip", "client tracking on", "client id", "client info"),
    *(
        "client list",
        "client kill id 1",
        "client unblock 1",
        "client no-evict on",
        "client pause 1",
    ),
    *("client caching yes", "client new-one", "client trackinginfo", "client no-touch on"),
    *("client setinfo something new", "client getredir"),
    *("hello 3 auth u p", "hello 3 auth u p setname n", "hello 3 x", "hello 3 setname a\x7f"),
    *("hello 3 other n", "hello 3 setname n auth u p"),
]


@pytest.mark.parametrize(
    ("line", "route"),
    [(line, Route.SHARED) for line in _SHARED]
    + [(line, Route.PINNED) for line in _PINNED]
    + [("multi", Route.TRANSACTION), ("MULTI", Route.TRANSACTION)],
)
def test_routes(line: str, route: Route) -> None:
    session = _session()
    before = _memory(session)
    decision = _route(session, line)
    assert decision.route is route
    assert decision.settle == (route is Route.PINNED)
    assert (decision.reply, decision.ask, decision.answer, decision.apply) == (None,) * 4
    assert not decision.close
    assert _memory(session) == before


@pytest.mark.parametrize("trait", [trait for trait in Trait if trait])
def test_every_trait_has_a_route_however_few_its_arguments(trait: Trait) -> None:
    for args in ([b"name"], [b"name", b""], [b"name", b"", b""], [b"name"] * 9):
        decision = _session().route(trait, args)
        if decision.route is Route.LOCAL:
            assert (decision.reply is None) == (decision.ask is not None)
            assert (decision.answer is None) == (decision.ask is None)


@pytest.mark.parametrize(
    ("table", "line", "route"),
    [
        # Nothing is known as yet: a link of its own, where nothing can go wrong
        (BUILTIN, "hello 3", Route.PINNED),
        (BUILTIN, "reset", Route.PINNED),
        (BUILTIN, "client no-such", Route.SHARED),
        (BUILTIN, "client setname n", Route.LOCAL),
        # Older than these: the server's own error comes back
        (OLD, "hello 3", Route.SHARED),
        (OLD, "hello", Route.SHARED),
        (OLD, "client setinfo lib-name x", Route.SHARED),
        (OLD, "client setname n", Route.LOCAL),
        (OLD, "client tracking on", Route.PINNED),
    ],
)
def test_what_the_server_knows(table: CommandTable, line: str, route: Route) -> None:
    assert _route(_session(table), line).route is route


def test_a_group_may_be_called_streams(server: RedisServer) -> None:
    # Redis takes two words after GROUP, whatever they are, before it looks for STREAMS.
    server.ask("XGROUP", "CREATE", "k", "streams", "$", "MKSTREAM")
    with Raw(server.path) as blocked:
        ident = blocked.ask("CLIENT", "ID")
        line = b"XREADGROUP GROUP streams streams BLOCK 0 STREAMS k >"
        blocked.command(*line.split())
        with Raw(server.path) as other:
            # It is certain to have been read when this has been answered by the same server.
            while other.ask("CLIENT", "UNBLOCK", ident) != 1:
                pass
        assert blocked.reply() is None
    assert _route(_session(), line).route is Route.PINNED


# Nothing happens before the decision is carried out


def _carry_out(decision: Decision, reply: bytes = b"+OK\r\n") -> bytes:
    """As the client does; reply: what the server answers to `ask`."""
    assert decision.route is Route.LOCAL
    if decision.apply is not None:
        decision.apply()
    if decision.ask is None:
        assert decision.reply is not None
        return decision.reply
    assert decision.answer is not None
    return decision.answer(reply)


_HELLO_REPLY = b"*2\r\n$2\r\nid\r\n:5\r\n"


@pytest.mark.parametrize(
    ("line", "reply", "memory"),
    [
        ("select 5", b"+OK\r\n", (2, 5, None, None)),
        ("select 4", b"+OK\r\n", (2, 4, None, None)),
        ("SELECT 99", b"-ERR DB index is out of range\r\n", (2, HOME, None, None)),
        ("hello 3", b"%1\r\n$2\r\nid\r\n:5\r\n", (3, HOME, None, None)),
        ("hello 3 setname n", b"%1\r\n$2\r\nid\r\n:5\r\n", (3, HOME, b"n", None)),
        ("hello 2 setname n", _HELLO_REPLY, (2, HOME, b"n", None)),
        ("hello 4", b"-NOPROTO unsupported protocol version\r\n", (2, HOME, None, None)),
        ("hello 3 setname n", b"-ERR no\r\n", (2, HOME, None, None)),
        ("hello 4 setname n", b"-NOPROTO no\r\n", (2, HOME, None, None)),
        ("client setname n", b"", (2, HOME, b"n", None)),
        ("client setinfo lib-name l", b"", (2, HOME, None, {b"LIB-NAME": b"l"})),
    ],
)
def test_the_memory_changes_only_when_the_decision_is_carried_out(
    line: str, reply: bytes, memory: tuple[object, ...]
) -> None:
    session = _session(dbs=(HOME, 4))
    before = _memory(session)
    decision = _route(session, line)
    assert _memory(session) == before
    _carry_out(decision, reply)
    assert _memory(session) == memory


# SELECT


def test_select_asks_once_for_each_db() -> None:
    session = _session()
    decision = _route(session, "select 5")
    assert (decision.ask, decision.settle) == (encode.command(b"select", b"5"), True)
    assert _carry_out(decision) == encode.OK
    decision = _route(session, "select 5")
    assert decision == Decision(Route.LOCAL, reply=encode.OK)
    decision = _route(session, f"select {HOME}")
    assert (decision.ask, decision.reply, decision.settle) == (None, encode.OK, True)
    _carry_out(decision)
    assert session.db == HOME
    decision = _route(session, "select 5")
    assert (decision.ask, decision.reply, decision.settle) == (None, encode.OK, True)
    _carry_out(decision)
    assert session.db == 5


@pytest.mark.parametrize(
    "index", ["0", "5", "05", "+5", "-1", "x", "''", "1x", "16", "99999999999", "٣", "0x1", "1.0"]
)
def test_select_is_answered_as_by_redis(server: RedisServer, index: str) -> None:
    session = _session(dbs=(HOME, 5))
    arguments = [b"SELECT", b"" if index == "''" else index.encode()]
    with Raw(server.path) as direct:
        direct.ask("SELECT", HOME)
        direct.command(*arguments)
        expected = direct.line() + b"\r\n"
    with Raw(server.path) as direct:
        direct.command(*arguments)
        asked = direct.line() + b"\r\n"
    decision = session.route(Trait.SELECT, arguments)
    assert _carry_out(decision, asked) == expected
    assert session.db == (int(index) if expected == encode.OK else HOME)


# HELLO


def _hello(server: RedisServer, session: Session, line: str) -> tuple[bytes, bytes]:
    """The session's answer, and what a direct connection in the same state answers."""
    before = b"" if session.resp == 2 else encode.command(b"HELLO", b"3")
    skip = len(conversation(server.path, before))
    expected = conversation(server.path, before + encode.command(*line.encode().split()))[skip:]
    decision = _route(session, line)
    assert decision.settle
    assert decision.ask is not None
    asked = conversation(server.path, decision.ask)
    return _carry_out(decision, asked), expected


@pytest.mark.parametrize("resp", [2, 3])
@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("HELLO", None),
        ("hello 2", 2),
        ("Hello 3", 3),
        ("hello 3 setname name", 3),
        ("hello 2 SetName name", 2),
        ("hello 4", None),
        ("hello 1", None),
        ("hello x", None),
        ("hello 03", None),
        ("hello 99999999999999999999", None),
        ("hello 4 setname name", None),
    ],
)
def test_hello_is_answered_as_by_redis(
    any_server: RedisServer, resp: int, line: str, after: int | None
) -> None:
    session = _session()
    if resp == 3:
        _hello(any_server, session, "hello 3")
        assert session.resp == 3
    answer, expected = _hello(any_server, session, line)
    if after is None and line.lower() != "hello":
        assert answer == expected
        assert answer.startswith(b"-")
        assert _memory(session) == (resp, HOME, None, None)
        return
    # The same bytes, but for the id, which is the session's own.
    assert session.resp == (after or resp)
    assert session.name == (b"name" if "name" in line.lower() else None)
    marker = b"$2\r\nid\r\n:"
    head, found, rest = expected.partition(marker)
    assert found
    _, _, tail = rest.partition(b"\r\n")
    assert answer == head + marker + b"%d\r\n" % session.id + tail
    fields, theirs = _decode(answer), _decode(expected)
    assert isinstance(fields, dict if session.resp == 3 else list)
    if isinstance(fields, list):
        fields, theirs = (dict(zip(it[::2], it[1::2], strict=True)) for it in (fields, theirs))
    assert fields == theirs | {b"id": FIRST_ID + 7}
    assert (fields[b"proto"], fields[b"server"]) == (session.resp, b"redis")


def test_hello_with_an_empty_name_removes_the_name() -> None:
    session = _session()
    _carry_out(_route(session, "client setname n"))
    _carry_out(_route(session, "hello 2 setname ''"), _HELLO_REPLY)
    assert session.name is None


def test_hello_without_setname_keeps_the_name() -> None:
    session = _session()
    _carry_out(_route(session, "client setname n"))
    _carry_out(_route(session, "hello 3"), _HELLO_REPLY)
    assert session.name == b"n"


# CLIENT


@pytest.mark.parametrize("resp", [2, 3])
@pytest.mark.parametrize("name", [b"n", b"", b"!~", b"a b", b"a\nb", b"\x7f", b"\xc3\xa9", b"a\0"])
def test_names_are_those_that_redis_takes(server: RedisServer, resp: int, name: bytes) -> None:
    session = _session()
    session.resp = resp
    with Raw(server.path) as direct:
        direct.ask("HELLO", resp)
        direct.ask("CLIENT", "SETNAME", "old")
        accepted = direct.ask("CLIENT", "SETNAME", name) == b"OK"
        direct.command("CLIENT", "GETNAME")
        expected = direct.line() + b"\r\n"
        if not expected.startswith((b"_", b"$-1")):
            expected += direct.line() + b"\r\n"
    _carry_out(session.route(Trait.CLIENT, [b"CLIENT", b"SETNAME", b"old"]))
    decision = session.route(Trait.CLIENT, [b"client", b"SetName", name])
    assert (decision.route is Route.LOCAL) == accepted
    if accepted:
        assert _carry_out(decision) == encode.OK
    assert _carry_out(session.route(Trait.CLIENT, [b"CLIENT", b"GetName"])) == expected


def test_library_attributes_are_kept_for_links_of_its_own() -> None:
    session = _session()
    assert _carry_out(_route(session, "client setinfo lib-name one")) == encode.OK
    assert _carry_out(_route(session, "client setinfo LIB-VER 1.0")) == encode.OK
    assert _carry_out(_route(session, "CLIENT SETINFO LIB-Name two")) == encode.OK
    assert session.lib == {b"LIB-NAME": b"two", b"LIB-VER": b"1.0"}


# QUIT and RESET


@pytest.mark.parametrize("line", ["quit", "QUIT now please"])
def test_quit(line: str) -> None:
    assert _route(_session(), line) == Decision(Route.LOCAL, reply=b"+OK\r\n", close=True)


def test_reset_leaves_nothing_but_what_redis_keeps() -> None:
    session = _session()
    for line, reply in [
        ("select 5", encode.OK),
        ("hello 3 setname n", _HELLO_REPLY),
        ("client setinfo lib-name l", b""),
    ]:
        _carry_out(_route(session, line), reply)
    before = _memory(session)
    assert before == (3, 5, b"n", {b"LIB-NAME": b"l"})
    decision = _route(session, "reset")
    assert (decision.settle, decision.close) == (True, False)
    assert _memory(session) == before
    assert _carry_out(decision) == b"+RESET\r\n"
    # networking.c, clearClientConnectionState: they still tell of the library behind it.
    assert _memory(session) == (2, HOME, None, {b"LIB-NAME": b"l"})
    assert _carry_out(_route(session, "client getname")) == b"$-1\r\n"
    assert session.id == FIRST_ID + 7


def test_sessions_share_nothing_but_the_dbs_that_are_known() -> None:
    server = Server()
    one, other = (Session(ident, HOME, server, _decode) for ident in (1, 2))
    _carry_out(_route(one, "select 5"))
    _carry_out(_route(one, "client setinfo lib-name l"))
    _carry_out(_route(one, "hello 3 setname n"), _HELLO_REPLY)
    assert _memory(other) == (2, HOME, None, None)
    assert _route(other, "select 5").ask is None
