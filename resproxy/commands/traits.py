"""Owns what must be known of a command's name to route it: its trait, and CLIENT's subcommands.

The names come from the generated `table`; an upstream's own `COMMAND` reply completes them, so
that modules and newer commands route correctly. No I/O here: the reply is handed in, decoded.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from resproxy.commands.table import COMMANDS


class Trait(enum.IntEnum):
    """How a command must be treated, as far as its name tells."""

    PLAIN = 0
    """Needs no connection state and is answered by one reply: shared, inside MULTI too."""
    BLOCKING = 1
    """Blocks its connection outside MULTI: pinned there. Inside MULTI it does not block: plain."""
    XREAD = 2
    """BLOCKING only with a BLOCK option before STREAMS (XREAD, XREADGROUP)."""
    PINNED = 3
    """Needs a connection of its own, inside MULTI too: it leaves state there, has no reply or
    several, turns the connection into a stream, or makes the server close it."""
    SELECT = 4
    HELLO = 5
    AUTH = 6
    RESET = 7
    QUIT = 8
    CLIENT = 9
    """The subcommand decides: `client_route`."""
    MULTI = 10
    EXEC = 11
    DISCARD = 12
    SCRIPT = 13
    """SCRIPT, FUNCTION and CLUSTER: `subcommand_pins` tells PINNED from PLAIN."""


class ClientRoute(enum.Enum):
    """What the session does with one CLIENT subcommand."""

    SETNAME = enum.auto()
    GETNAME = enum.auto()
    SETINFO = enum.auto()
    PINNED = enum.auto()
    """Speaks of, or changes, the connection that it is sent on."""
    PLAIN = enum.auto()
    """Shared: any connection gives the same answer (HELP, and the error for an unknown name)."""


# The commands that are not PLAIN, whatever a server's flags say of them. Each reason is one of
# those in Trait.PINNED; `tests/test_commands.py` holds this against the flags of real servers.
_TRAITS: Final[Mapping[str, Trait]] = {
    **dict.fromkeys(
        (
            # State on the connection.
            "watch",
            "readonly",
            "readwrite",
            "asking",
            # The state of the connection decides the answer: the offset of its own last write.
            "wait",
            "waitaof",
            # Several replies, or pushes later.
            "subscribe",
            "unsubscribe",
            "psubscribe",
            "punsubscribe",
            "ssubscribe",
            "sunsubscribe",
            "monitor",
            # The connection becomes a replica's; REPLCONF ACK has no reply at all.
            "sync",
            "psync",
            "replconf",
            # May answer late or never, crash the server, or need to get past a busy script.
            "debug",
            "shutdown",
            "failover",
            # Redis takes these for an HTTP request and closes the connection without a reply.
            "host:",
            "post",
        ),
        Trait.PINNED,
    ),
    **dict.fromkeys(
        (
            "blmove",
            "blmpop",
            "blpop",
            "brpop",
            "brpoplpush",
            "bzmpop",
            "bzpopmax",
            "bzpopmin",
        ),
        Trait.BLOCKING,
    ),
    "xread": Trait.XREAD,
    "xreadgroup": Trait.XREAD,
    "select": Trait.SELECT,
    "hello": Trait.HELLO,
    "auth": Trait.AUTH,
    "reset": Trait.RESET,
    "quit": Trait.QUIT,
    "client": Trait.CLIENT,
    "multi": Trait.MULTI,
    "exec": Trait.EXEC,
    "discard": Trait.DISCARD,
    "script": Trait.SCRIPT,
    "function": Trait.SCRIPT,
    "cluster": Trait.SCRIPT,
}

# Subcommands of Trait.SCRIPT's commands that need a connection of their own.
_PINNED_SUBCOMMANDS: Final[frozenset[tuple[bytes, bytes]]] = frozenset(
    {
        # A server that runs a script reads nothing more from the connection that sent it, so
        # what stops the script, or looks at it, has to come on another one.
        (b"script", b"kill"),
        (b"function", b"kill"),
        (b"function", b"stats"),
        # The next EVAL on this connection opens a debugger on it.
        (b"script", b"debug"),
        # Valkey >= 8.0 blocks the connection until the replicas have acknowledged.
        (b"cluster", b"setslot"),
        # Between servers: the connection becomes a replication stream (Redis 8.4, Valkey 9.0).
        (b"cluster", b"syncslots"),
    }
)

_CLIENT_LOCAL: Final[Mapping[bytes, ClientRoute]] = {
    b"setname": ClientRoute.SETNAME,
    b"getname": ClientRoute.GETNAME,
    b"setinfo": ClientRoute.SETINFO,
}


@dataclass(frozen=True, slots=True)
class CommandTable:
    """The traits of all commands, and which commands the upstream knows. Immutable."""

    specials: dict[bytes, int]
    """int(Trait) of every name that is not PLAIN, in lower and in upper case. Do not change it."""
    known: frozenset[bytes] | None
    """Names the upstream listed, `name` and `name|sub` in lower case; None: never asked."""

    @classmethod
    def builtin(cls) -> CommandTable:
        """The table as generated, for an upstream that has not been asked (yet)."""
        specials: dict[bytes, int] = {}
        for name, trait in _TRAITS.items():
            _spell(specials, name.encode(), trait)
        return cls(specials, None)

    def completed(self, reply: object) -> CommandTable:
        """A copy that also knows what `reply`, an upstream's decoded `COMMAND` reply, lists.

        `reply` is nested sequences (RESP3: sets for flags) of bytes and ints. A listed command
        that would be PLAIN becomes BLOCKING if it or one of its subcommands has the flag
        `blocking`, and PINNED if it has the flag `pubsub`, the publishing ones excepted.
        A server that lists no subcommands (Redis < 7.0) is taken to know those of the generated
        table that are no newer than the newest command it lists.

        Raises ValueError if `reply` is no COMMAND reply.
        """
        specials = dict(self.specials)
        known: set[bytes] = set()
        lists_subcommands = False
        for entry in _entries(reply):
            name = entry.name
            known.add(name)
            known.update(sub.name for sub in entry.subcommands)
            lists_subcommands |= entry.lists_subcommands
            if name in specials:
                continue
            if any(b"blocking" in each.flags for each in (entry, *entry.subcommands)):
                _spell(specials, name, Trait.BLOCKING)
            elif b"pubsub" in entry.flags and name not in _PUBLISHING:
                _spell(specials, name, Trait.PINNED)
        if not lists_subcommands:
            known |= _subcommands_as_old_as(known)
        return CommandTable(specials, frozenset(known))

    def trait(self, name: bytes) -> Trait:
        """The trait of `name` in any case; PLAIN if nothing is known of it."""
        return Trait(self.specials.get(name.lower(), Trait.PLAIN))

    def knows(self, name: bytes, sub: bytes | None = None) -> bool | None:
        """Whether the upstream has the command, or its subcommand; None if it was never asked."""
        if self.known is None:
            return None
        full = name if sub is None else name + b"|" + sub
        return full.lower() in self.known


def client_route(table: CommandTable, sub: bytes) -> ClientRoute:
    """What to do with `CLIENT <sub> …`, `sub` in any case.

    PINNED are all that the generated table or the upstream knows: even if the upstream does not
    list one, it may obey it, and REPLY or TRACKING on a shared link would ruin everybody's
    replies. Other names are PLAIN, so that the upstream's own error comes back: client libraries
    try newer subcommands at every connect. So is SETINFO if the upstream does not know it.
    """
    sub = sub.lower()
    known = table.knows(b"client", sub)
    if sub in _CLIENT_LOCAL:
        missing = sub == b"setinfo" and known is False
        return ClientRoute.PLAIN if missing else _CLIENT_LOCAL[sub]
    if sub == b"help" or not (known or b"client|" + sub in _BUILTIN_NAMES):
        return ClientRoute.PLAIN
    return ClientRoute.PINNED


def subcommand_pins(name: bytes, sub: bytes) -> bool:
    """Whether a subcommand of a Trait.SCRIPT command needs its own connection (any case)."""
    return (name.lower(), sub.lower()) in _PINNED_SUBCOMMANDS


# Commands with the flag `pubsub` that have one reply and leave no state.
_PUBLISHING: Final = frozenset({b"publish", b"spublish", b"pubsub"})

_BUILTIN_NAMES: Final = frozenset(name.encode() for name in COMMANDS)


def _spell(specials: dict[bytes, int], name: bytes, trait: Trait) -> None:
    specials[name.lower()] = specials[name.upper()] = int(trait)


def _subcommands_as_old_as(known: Iterable[bytes]) -> set[bytes]:
    """The table's subcommands no newer than the newest of the `known` commands."""
    names = {name.decode("latin-1") for name in known}
    era = max((_version(COMMANDS[name][-1]) for name in names & COMMANDS.keys()), default=(0,))
    return {
        full.encode()
        for full, facts in COMMANDS.items()
        if "|" in full and full.partition("|")[0] in names and _version(facts[-1]) <= era
    }


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


@dataclass(frozen=True, slots=True)
class _Entry:
    """One command, or subcommand, of a COMMAND reply."""

    name: bytes
    flags: frozenset[bytes]
    subcommands: tuple[_Entry, ...]
    lists_subcommands: bool


def _entries(reply: object) -> list[_Entry]:
    # Redis < 6.0 sends 6 elements, 6.x 7, later ones 10, of which the last are subcommands.
    if not isinstance(reply, list | tuple):
        raise ValueError(f"not a COMMAND reply: expected a list of commands, got {reply!r:.80}")
    entries = []
    for item in reply:
        match item:
            case [bytes(name), int(), list() | tuple() | set() | frozenset() as flags, *rest]:
                subcommands, listed = (rest[6], True) if rest[6:] else ((), False)
                entries.append(
                    _Entry(name.lower(), frozenset(flags), tuple(_entries(subcommands)), listed)
                )
            case _:
                raise ValueError(f"not an entry of a COMMAND reply: {item!r:.80}")
    return entries
