"""Owns what Redis would remember of a connection, and the decision which route a command takes.

Five routes, and only five (docs/architecture.md). Plain commands never get here: the scanner tells
them by their names, and their route is SHARED. Here the special ones are decided, from the trait
and the arguments alone: no I/O, and no change of state before the decision is carried out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from resproxy.commands.traits import (
    ClientRoute,
    CommandTable,
    Trait,
    client_route,
    subcommand_pins,
)
from resproxy.wire import encode


class Route(Enum):
    """Where a command goes."""

    SHARED = auto()  #: onto a link of the pool, as it is
    LOCAL = auto()  #: answered here, perhaps after asking the server on the internal link
    TRANSACTION = auto()  #: MULTI ... EXEC, whole in the input: contiguously onto a shared link
    PINNED = auto()  #: onto a link of the client's own
    HUB = auto()  #: one upstream subscription for all subscribers (SUBSCRIBE is PINNED until then)


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one special command.

    reply: LOCAL: the answer, or None where `ask` is sent on the internal link first and `answer`
    turns the server's reply into the client's. settle: only once no reply is due, because the
    pool, or the encoding of what follows, changes. close: the client has said goodbye.
    """

    route: Route
    reply: bytes | None = None
    ask: bytes | None = None
    answer: Callable[[bytes], bytes] | None = None
    settle: bool = False
    close: bool = False
    apply: Callable[[], None] | None = None


SHARED = Decision(Route.SHARED)
PINNED = Decision(Route.PINNED, settle=True)
TRANSACTION = Decision(Route.TRANSACTION)
_QUIT = Decision(Route.LOCAL, reply=encode.OK, close=True)

# Ids of the proxy's own start here, where no server's counter comes, so that an id from HELLO that
# is handed to CLIENT KILL or UNBLOCK can never name somebody else's connection.
FIRST_ID = 1 << 40


class Server(Protocol):
    """What is known of the server by now; dbs: those that it has let somebody select."""

    @property
    def table(self) -> CommandTable:
        """Its commands."""

    dbs: set[int]


class Session:
    """One connection's memory. db, resp, name and lib are what a link of its own must be given."""

    __slots__ = ("_decode", "_home", "_server", "db", "id", "lib", "name", "resp")

    def __init__(
        self, ident: int, home: int, server: Server, decode: Callable[[bytes], object]
    ) -> None:
        """home: the db of a new connection. decode: one whole reply as objects, a map as a dict."""
        self.id = ident
        self._home = home
        self._server = server
        self._decode = decode
        self.lib: dict[bytes, bytes] | None = None
        self._forget()

    def _forget(self) -> None:
        # What RESET forgets (networking.c: clearClientConnectionState): not the library's name.
        self.resp = 2
        self.db = self._home
        self.name: bytes | None = None

    def route(self, trait: int, args: list[bytes]) -> Decision:
        """Decide about a special command: the one place where routes are chosen.

        A wrong number of arguments goes to the server like a plain command: its error changes no
        state. What is not certain here is PINNED, where nothing can go wrong.
        """
        match trait:
            case Trait.MULTI:
                return TRANSACTION if len(args) == 1 else SHARED
            case Trait.EXEC | Trait.DISCARD:
                return SHARED  # without MULTI: an error of the server's
            case Trait.XREAD:
                return PINNED if _xread_blocks(args) else SHARED
            case Trait.SCRIPT:
                pins = len(args) > 1 and subcommand_pins(args[0], args[1])
                return PINNED if pins else SHARED
            case Trait.SELECT:
                return self._select(args)
            case Trait.HELLO:
                return self._hello(args)
            case Trait.CLIENT:
                return self._client(args)
            case Trait.QUIT:
                return _QUIT
            case Trait.RESET:
                if len(args) != 1 or not self._server.table.knows(b"reset"):
                    return SHARED if len(args) != 1 else PINNED
                return Decision(Route.LOCAL, reply=b"+RESET\r\n", settle=True, apply=self._forget)
            case _:
                return PINNED

    def _select(self, args: list[bytes]) -> Decision:
        if len(args) != 2:
            return SHARED
        db = _index(args[1])

        def select() -> None:
            if db is not None:
                self.db = db
                self._server.dbs.add(db)

        if db == self.db:
            return Decision(Route.LOCAL, reply=encode.OK)
        if db in self._server.dbs:
            return Decision(Route.LOCAL, reply=encode.OK, settle=True, apply=select)

        def answer(reply: bytes) -> bytes:
            if reply == encode.OK:
                select()
            return reply

        return Decision(Route.LOCAL, ask=encode.command(*args), answer=answer, settle=True)

    def _hello(self, args: list[bytes]) -> Decision:
        name: bytes | None = None
        known = self._server.table.knows(b"hello")
        if known is False:
            return SHARED  # a server older than RESP3: its own error comes back
        if known is None or len(args) == 3 or len(args) > 4:
            return PINNED
        if len(args) == 4:
            name = args[3]
            if args[2].upper() != b"SETNAME" or not _printable(name):
                return PINNED
        version = _index(args[1]) if len(args) > 1 else self.resp
        question = (b"HELLO", b"%d" % self.resp) if len(args) == 1 else (b"HELLO", args[1])

        def answer(reply: bytes) -> bytes:
            if version not in (2, 3) or reply.startswith(b"-"):
                return reply
            fields = self._decode(reply)
            if isinstance(fields, list):
                fields = dict(zip(fields[::2], fields[1::2], strict=True))
            if not isinstance(fields, dict):
                return reply
            fields[b"id"] = self.id
            self.resp = version
            if len(args) == 4:
                self.name = name or None
            return encode.value(fields, version)

        return Decision(Route.LOCAL, ask=encode.command(*question), answer=answer, settle=True)

    def _client(self, args: list[bytes]) -> Decision:
        if len(args) < 2:
            return SHARED
        match client_route(self._server.table, args[1]):
            case ClientRoute.PLAIN:
                return SHARED
            case ClientRoute.SETNAME if len(args) == 3 and _printable(args[2]):

                def rename() -> None:
                    self.name = args[2] or None

                return Decision(Route.LOCAL, reply=encode.OK, apply=rename)
            case ClientRoute.GETNAME if len(args) == 2:
                name = encode.null(self.resp) if self.name is None else encode.bulk(self.name)
                return Decision(Route.LOCAL, reply=name)
            case ClientRoute.SETINFO if len(args) == 4 and _printable(args[3]):
                attribute = args[2].upper()
                if attribute not in (b"LIB-NAME", b"LIB-VER"):
                    return PINNED  # newer servers may know more of them

                def describe() -> None:
                    self.lib = {**(self.lib or {}), attribute: args[3]}

                return Decision(Route.LOCAL, reply=encode.OK, apply=describe)
            case ClientRoute.SETNAME | ClientRoute.GETNAME | ClientRoute.SETINFO:
                return SHARED  # the server refuses it: nothing changes there
            case _:
                return PINNED


def _xread_blocks(args: list[bytes]) -> bool:
    at = 1
    while at < len(args):
        match args[at].upper():
            case b"BLOCK":
                return True
            case b"STREAMS":
                return False
            case b"GROUP":
                at += 3  # its name and the consumer's, whatever they are called
            case _:
                at += 1
    return False


def _index(arg: bytes) -> int | None:
    """A canonical non-negative number, as Redis's string2ll takes it."""
    if not arg.isdigit() or len(arg) > 9 or (arg[:1] == b"0" and len(arg) > 1):
        return None
    return int(arg)


def _printable(value: bytes) -> bool:
    """What Redis takes for a name: no spaces, newlines or special characters."""
    return all(33 <= char <= 126 for char in value)
