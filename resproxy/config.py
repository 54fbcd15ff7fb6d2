"""Owns the configuration: its options, where their values may come from, and what they may be.

Flags beat the environment, the environment beats the TOML file, the file beats the defaults. A
`Config` is built once and never changes.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from resproxy.addresses import Address, Upstream, parse_address, parse_upstream

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "Option",
    "Upstream",
    "default_text",
    "load",
    "options",
]

ENVIRONMENT_PREFIX = "RESPROXY_"
FILE_VARIABLE = "RESPROXY_CONFIG"
#: Read by setup.py; they may well still be set when the proxy starts.
BUILD_VARIABLES = ("RESPROXY_REQUIRE_COMPILED", "RESPROXY_DISABLE_COMPILED")

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# Kubernetes puts these into every pod near a Service that is called "resproxy".
_SERVICE_VARIABLE = re.compile(r"RESPROXY_(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_(TCP|UDP|SCTP).*)?)")
# As in redis.conf: 1k is 1000 bytes, 1kb is 1024.
_SIZE = re.compile(r"(\d+)\s*(b|kb?|mb?|gb?)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1000, "kb": KIB, "m": 1000**2, "mb": MIB, "g": 1000**3, "gb": GIB}
_SHOWN_UNITS = ((GIB, "gb"), (MIB, "mb"), (KIB, "kb"), (1, ""))
_WORDS = {"true": True, "yes": True, "on": True, "1": True}
_WORDS |= {"false": False, "no": False, "off": False, "0": False}


class ConfigError(Exception):
    """A value that cannot be used. The text names its source, the value and what is allowed."""


def _addresses(value: object) -> tuple[Address, ...]:
    """Text (addresses separated by commas), or a list of addresses."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not parts:
        raise ValueError("must be one or more addresses, like 127.0.0.1:6380")
    found = [parse_address(part.strip() if isinstance(part, str) else part) for part in parts]
    fixed = [address for address in found if address.path or address.port]
    if len(set(fixed)) < len(fixed):
        raise ValueError("must not name an address twice")
    return tuple(found)


def _unavailable_address(_value: object) -> Address:
    raise ValueError("the admin listener comes in a later version; leave it out")


def _only_one(value: object) -> int:
    if str(value) != "1":
        raise ValueError("more than one worker process comes in a later version; must be 1")
    return 1


def _whole(low: int, high: int = 2**31 - 1) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def _seconds(value: object) -> float:
    allowed = "must be a number of seconds greater than 0, like 2 or 0.5"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(allowed)
    try:
        number = float(value)
    except ValueError:
        raise ValueError(allowed) from None
    if not math.isfinite(number) or number <= 0:
        raise ValueError(allowed)
    return number


def _size(value: object) -> int:
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        value = int(match[1]) * _UNITS[(match[2] or "").lower()]
    if type(value) is not int or not KIB <= value < 2**63:
        raise ValueError("must be a size of at least 1kb: bytes, or like 16kb, 64mb, 1gb")
    return value


def _switch(value: object) -> bool:
    if isinstance(value, str):
        value = _WORDS.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _one_of(*names: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value.lower() not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value.lower()

    return parse


class Option(msgspec.Struct, frozen=True):
    """What one field of Config means and how its value is read (`parse` raises ValueError).

    flag: it is also an option of the command line; every field is a variable and a TOML key.
    """

    parse: Callable[[object], Any]
    help: str
    flag: bool = False


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every option. The field's name is the TOML key; `RESPROXY_` and it in capitals the variable.

    Sizes are in bytes, times in seconds.
    """

    upstream: Annotated[Upstream, Option(parse_upstream, "the Redis server behind", True)] = (
        Upstream()
    )
    listen: Annotated[
        tuple[Address, ...],
        Option(_addresses, "where clients connect; may be given more than once", True),
    ] = (Address(host="127.0.0.1", port=6380),)
    connections: Annotated[
        int, Option(_whole(1, 1024), "links to the upstream that all clients share", True)
    ] = 4
    workers: Annotated[int, Option(_only_one, "processes; only 1 as yet", True)] = 1
    admin: Annotated[
        Address | None, Option(_unavailable_address, "the admin listener; not yet", True)
    ] = None
    embedded: Annotated[
        bool, Option(_switch, "start a private Redis and use it as the upstream", True)
    ] = False
    upstream_wait: Annotated[
        float, Option(_seconds, "how long a client waits for an unreachable upstream (s)")
    ] = 2.0
    connect_timeout: Annotated[
        float, Option(_seconds, "how long one attempt to connect to the upstream may take (s)")
    ] = 1.0
    drain_timeout: Annotated[
        float, Option(_seconds, "how long replies that are due are waited for at the end (s)")
    ] = 10.0
    max_clients: Annotated[int, Option(_whole(1), "clients at a time")] = 10_000
    max_pinned: Annotated[int, Option(_whole(1), "pinned links in all")] = 1_000
    spare_links: Annotated[
        int, Option(_whole(0), "clean pinned links that a pool keeps for the next client")
    ] = 4
    pool_idle: Annotated[
        float, Option(_seconds, "after how long an unused pool closes its links (s)")
    ] = 60.0
    receive_buffer: Annotated[int, Option(_size, "the buffer that sockets are read into")] = (
        256 * KIB
    )
    large_request: Annotated[
        int, Option(_size, "a larger request is streamed over a pinned link")
    ] = MIB
    output_pause: Annotated[
        int, Option(_size, "unsent replies at which a client is no longer read from")
    ] = 512 * MIB
    output_stall: Annotated[
        float,
        Option(_seconds, "…and how long it may then take nothing before it is disconnected (s)"),
    ] = 60.0
    output_limit: Annotated[
        int, Option(_size, "unsent replies at which a client is disconnected")
    ] = GIB
    link_backlog: Annotated[
        int, Option(_size, "unsent requests of a link at which its clients are no longer read from")
    ] = 4 * MIB
    backoff_min: Annotated[
        float, Option(_seconds, "the first pause before connecting again (s)")
    ] = 0.05
    backoff_max: Annotated[
        float, Option(_seconds, "the longest pause before connecting again (s)")
    ] = 2.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(
            _one_of("debug", "info", "warning", "error"),
            "what is logged: debug, info, warning or error",
            True,
        ),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Option(_one_of("text", "json"), "how a log line looks: text or json", True),
    ] = "text"


@cache
def options() -> Mapping[str, Option]:
    """Every field of Config and its Option, in order."""
    hints = get_type_hints(Config, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in Config.__struct_fields__}


def default_text(name: str) -> str:
    """The default of a field, as it would be written on the command line; "none" for none."""
    value = getattr(Config(), name)
    if isinstance(value, Upstream):
        return value.display
    if isinstance(value, tuple):
        return ",".join(address.display for address in value)
    if options()[name].parse is _size:
        divisor, unit = next(pair for pair in _SHOWN_UNITS if value % pair[0] == 0)
        return f"{value // divisor}{unit}"
    return {None: "none", False: "false"}.get(value, str(value))


def load(flags: Namespace | None, environ: Mapping[str, str], file: str | None = None) -> Config:
    """Merge all sources into one Config; `file` (else RESPROXY_CONFIG) names the TOML file.

    An empty variable counts as unset, and so does a flag that is None. Raises ConfigError.
    """
    file = file or environ.get(FILE_VARIABLE) or None
    found: dict[str, tuple[str, object]] = {}  # field: (source, value); later sources win
    for source in (_from_file(file), _from_environment(environ), _from_flags(flags)):
        found.update(source)
    values = {name: _parsed(name, *pair) for name, pair in found.items()}
    config = Config(**values)
    if config.embedded and "upstream" in found:
        raise ConfigError(
            f"{found['embedded'][0]} and {found['upstream'][0]} exclude each other: "
            "the embedded Redis is the upstream"
        )
    for low, high in (("output_pause", "output_limit"), ("backoff_min", "backoff_max")):
        if getattr(config, low) > getattr(config, high):
            raise ConfigError(
                f"{_source(found, low)} must not be greater than {_source(found, high)}: "
                f"{getattr(config, low)} > {getattr(config, high)}"
            )
    return config


def _source(found: Mapping[str, tuple[str, object]], name: str) -> str:
    return found[name][0] if name in found else f"the default of {name}"


def _parsed(name: str, source: str, value: object) -> Any:
    try:
        return options()[name].parse(value)
    except ValueError as error:
        shown = _without_secrets(value) if name == "upstream" else value
        raise ConfigError(f"{source}: {shown!r}: {error}") from None


def _without_secrets(value: object) -> object:
    """What may be shown of an upstream that cannot be parsed: no user, password or parameters."""
    if not isinstance(value, str):
        return type(value).__name__
    return re.sub(r"^(\w*://)?.*@", r"\1***@", value, flags=re.DOTALL).partition("?")[0]


def _from_flags(flags: Namespace | None) -> Iterator[tuple[str, tuple[str, object]]]:
    for name, value in vars(flags or Namespace()).items():
        if name in options() and value is not None:
            yield name, (f"--{name.replace('_', '-')}", value)


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, object]]]:
    variables = {ENVIRONMENT_PREFIX + name.upper(): name for name in options()}
    for variable, value in environ.items():
        if variable in variables:
            if value:
                yield variables[variable], (variable, value)
        elif (
            variable.startswith(ENVIRONMENT_PREFIX)
            and variable not in (FILE_VARIABLE, *BUILD_VARIABLES)
            and not _SERVICE_VARIABLE.fullmatch(variable)
        ):
            raise ConfigError(f"{variable}: {_unknown('variable', variable, variables)}")


def _from_file(file: str | None) -> Iterator[tuple[str, tuple[str, object]]]:
    if file is None:
        return
    try:
        with open(file, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not valid TOML: {error}") from None
    for key, value in table.items():
        if key not in options():
            raise ConfigError(f"{file}: {key}: {_unknown('key', key, options())}")
        yield key, (f"{file}: {key}", value)


def _unknown(kind: str, name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    return f"unknown {kind}; {hint}"
