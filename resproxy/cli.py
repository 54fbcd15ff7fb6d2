"""Owns the command line: one function per subcommand, each returning an exit status.

0: done; 1: it failed while running; 2: what was asked for is wrong (as argparse does).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import platform
import signal
import socket
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from resproxy import __version__, log
from resproxy.compiled import HOT_MODULES, compiled_modules, is_compiled
from resproxy.config import Address, Config, ConfigError, default_text, load, options
from resproxy.embedded import EmbeddedError, embedded_redis

_DESCRIPTION = """\
A Redis-protocol proxy that runs beside an application. Every process of the application connects
to it as to Redis; all their commands share a few connections to the real server.
"""

_EXAMPLES = """\
examples:
  resproxy run                                      127.0.0.1:6380 -> redis://127.0.0.1:6379
  resproxy run --embedded                           try it without a Redis of your own
  resproxy run --upstream redis://10.0.0.5:6379/2 --listen unix:/run/resproxy.sock
  RESPROXY_UPSTREAM=redis://user:secret@10.0.0.5 resproxy run
  resproxy run --config /etc/resproxy.toml
then:
  redis-cli -p 6380 ping
"""

_RUN_NOTES = """\
Flags beat the environment, the environment beats the file. Each flag is also a variable
(--log-level: RESPROXY_LOG_LEVEL) and a key of the TOML file (log_level).

A password on the command line can be read by everybody in the process list:
put the URL into RESPROXY_UPSTREAM or into the file.

URL   redis://[user:password@]host:port[/db] or unix://[user:password@]/path[?db=N]
ADDR  host:port, [ipv6]:port or unix:/path

more options, as variables and TOML keys only (a size may be written like 64mb):
"""

_PING_TIMEOUT = 5.0  # s; more than upstream_wait, so that its error is what one sees

_METAVARS = {"upstream": "URL", "listen": "ADDR", "admin": "ADDR", "log_level": "LEVEL"}
_METAVARS |= {"log_format": "FORMAT"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `argv` (default: that of the process) and return its exit status."""
    arguments = build_parser().parse_args(argv)
    try:
        return int(arguments.function(arguments))
    except ConfigError as error:
        print(f"resproxy: {error}", file=sys.stderr)
        return 2
    except EmbeddedError as error:
        print(f"resproxy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    config = load(arguments, os.environ, arguments.config)
    log.setup(config.log_level, config.log_format)
    with ExitStack() as stack:
        if config.embedded:
            # Until the server handles it: leave through the `with`, which stops the Redis.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            config = msgspec.structs.replace(config, upstream=stack.enter_context(embedded_redis()))
        if config.log_format == "text":
            print("\n".join(_banner(config)), flush=True)
        if not is_compiled():
            hint = "much slower; install with a C compiler to compile"
            logging.getLogger(__name__).warning("interpreted", extra={"hint": hint})
        # Here, so that the other commands start at once.
        from resproxy.server import serve  # noqa: PLC0415

        return serve(config)


def ping(arguments: argparse.Namespace) -> int:
    """Send a PING to a running proxy, through the first address it listens on."""
    address = load(arguments, os.environ, arguments.config).listen[0]
    try:
        with (
            socket.socket(socket.AF_UNIX)
            if address.path
            else socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as client
        ):
            client.settimeout(_PING_TIMEOUT)
            client.connect(address.path or (address.host, address.port))
            client.sendall(b"*1\r\n$4\r\nPING\r\n")
            reply = client.makefile("rb").readline().decode(errors="replace").strip()
    except OSError as error:
        print(f"resproxy: {address.display}: {error.strerror or error}", file=sys.stderr)
        return 1
    print(f"{address.display}: {reply or 'closed the connection'}")
    # A server that wants a password has answered, too.
    return 0 if reply.startswith(("+PONG", "-NOAUTH")) else 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `function` of its result is the subcommand's."""
    parser = argparse.ArgumentParser(
        prog="resproxy",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show versions and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serving = commands.add_parser(
        "run",
        help="serve clients",
        description="Accept clients and forward their commands to the upstream.",
        epilog=_RUN_NOTES + "\n".join(_more_options()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_flags(serving, [name for name, option in options().items() if option.flag])
    serving.set_defaults(function=run)

    pinging = commands.add_parser(
        "ping",
        help="ask a running proxy for a PONG",
        description="Exit 0 if the proxy that listens at ADDR, and its upstream, answer a PING. "
        "Reads the same variables and file as run, so it serves as a health check.",
        allow_abbrev=False,
    )
    _add_flags(pinging, ["listen"])
    pinging.set_defaults(function=ping)
    return parser


def _add_flags(command: argparse.ArgumentParser, names: Iterable[str]) -> None:
    for name in names:
        text = f"{options()[name].help} (default: {default_text(name)})"
        command.add_argument(f"--{name.replace('_', '-')}", help=text, **_shape(name))
    command.add_argument("--config", metavar="FILE", help="a TOML file (also: RESPROXY_CONFIG)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("uvloop", "hiredis")]
        print(f"resproxy {__version__} ({_build()})")
        print(", ".join([f"python {platform.python_version()}", *libraries]))
        parser.exit()


def _build() -> str:
    compiled = compiled_modules()
    if compiled == HOT_MODULES:
        return "compiled"
    return f"interpreted: {len(HOT_MODULES) - len(compiled)} of {len(HOT_MODULES)} hot modules"


def _shape(name: str) -> dict[str, Any]:
    """How argparse takes a flag; all checks are those of the configuration."""
    if name == "embedded":
        return {"action": "store_const", "const": True}
    action = "append" if name == "listen" else "store"
    return {"action": action, "metavar": _METAVARS.get(name, "N")}


def _more_options() -> Iterator[str]:
    for name, option in options().items():
        if not option.flag:
            text = f"{option.help} (default: {default_text(name)})"
            yield from textwrap.wrap(
                text, 98, initial_indent=f"  {name:<16}", subsequent_indent=" " * 18
            )


def _banner(config: Config) -> Iterator[str]:
    yield f"resproxy {__version__} ({_build()})"
    yield f"  listen    {', '.join(address.display for address in config.listen)}"
    yield f"  upstream  {config.upstream.display}" + (" (embedded)" if config.embedded else "")
    fixed = [address for address in config.listen if address.path or address.port]
    for address in fixed:
        yield f"  try       {_redis_cli(address)}"
    for address in fixed[:1]:
        yield f"            {_python(address)}"


def _is_local(host: str) -> bool:
    """Whether a client on this machine needs no host: the default one of redis-cli and redis-py."""
    return host in ("127.0.0.1", "localhost", "0.0.0.0")


def _redis_cli(address: Address) -> str:
    if address.path:
        return f"redis-cli -s {address.path} ping"
    host = "" if _is_local(address.host) else f"-h {address.host} "
    return f"redis-cli {host}-p {address.port} ping"


def _python(address: Address) -> str:
    where = (
        f"port={address.port}" if _is_local(address.host) else f"{address.host!r}, {address.port}"
    )
    where = f"unix_socket_path={address.path!r}" if address.path else where
    return f'python3 -c "import redis; print(redis.Redis({where}).ping())"'
