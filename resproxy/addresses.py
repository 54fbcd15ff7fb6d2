"""Owns the two kinds of addresses, where to listen and which upstream, and how they are written.

Every ValueError raised here says what is allowed, and holds nothing of the value, which may
contain a password.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote_to_bytes, urlsplit

import msgspec

SOCKET_PATH_LIMIT = 107  # bytes; sizeof(sockaddr_un.sun_path) on Linux, less the NUL


class Address(msgspec.Struct, frozen=True):
    """Where to listen: TCP when `path` is None (port 0: the kernel chooses), else a Unix socket."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @property
    def display(self) -> str:
        """The address as it is written on the command line."""
        return f"unix:{self.path}" if self.path else f"{_bracketed(self.host)}:{self.port}"


class Upstream(msgspec.Struct, frozen=True):
    """The Redis server: TCP when `path` is None, else a Unix socket. `db` is for new clients.

    `password` may be empty, for users without one; None means that no AUTH is sent.
    """

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = None

    @property
    def display(self) -> str:
        """The URL without its secrets."""
        user = "" if self.password is None else f"{self.username or ''}:***@"
        if self.path:
            return f"unix://{user}{self.path}" + (f"?db={self.db}" if self.db else "")
        return f"redis://{user}{_bracketed(self.host)}:{self.port}" + (
            f"/{self.db}" if self.db else ""
        )

    def __repr__(self) -> str:
        return f"Upstream({self.display})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("url", self.display)]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_upstream(value: object) -> Upstream:
    """Read `redis://[user:pass@]host:port[/db]` or `unix://[user:pass@]/path[?db=N]`.

    Raises ValueError.
    """
    if not isinstance(value, str) or re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError("must be a URL without spaces, like redis://127.0.0.1:6379/0")
    try:
        url = urlsplit(value)
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(
            "is no URL; in a user or password write @ : / ? # [ ] % as %40 %3A %2F %3F %23 %5B %5D "
            "%25"
        ) from None
    if url.scheme == "rediss":
        raise ValueError("TLS to the upstream comes in a later version; use redis:// or unix://")
    if url.scheme not in ("redis", "unix") or "://" not in value:
        raise ValueError("must begin with redis:// or unix://, like redis://127.0.0.1:6379/0")
    if url.fragment:
        raise ValueError("must have no #; in a password write it as %23")
    username, password = _credentials(url)
    if url.scheme == "unix":
        if host or not url.path.startswith("/"):
            raise ValueError(
                "must name an absolute path, with three slashes: unix:///run/redis.sock"
            )
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        db = query.pop("db", "0")
        if query:
            raise ValueError("has unknown parameters; only ?db=N is known")
        return Upstream(
            path=_socket_path(_decoded(url.path)),
            db=_database(db),
            username=username,
            password=password,
        )
    if not host:
        raise ValueError("must name a host, like redis://127.0.0.1:6379")
    if port == 0:
        raise ValueError("must have a port from 1 to 65535")
    if url.query:
        raise ValueError(
            "must have no parameters; write the database as a path: redis://host:6379/1"
        )
    return Upstream(
        host=host,
        port=port or 6379,
        db=_database(url.path.removeprefix("/") or "0"),
        username=username,
        password=password,
    )


def _credentials(url: SplitResult) -> tuple[str | None, str | None]:
    if url.username is None and url.password is None:
        return None, None
    if url.password is None:
        raise ValueError("has a user without a password; write user:password@ or :password@")
    return _decoded(url.username or "") or None, _decoded(url.password)


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("has percent-encoded bytes that are not UTF-8") from None


def _database(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError("must have a database that is a number from 0, like redis://host:6379/1")
    return int(text)


def _socket_path(path: str) -> str:
    if not path.startswith("/") or len(path) < 2 or "\0" in path:
        raise ValueError("must name an absolute path, like unix:/run/resproxy.sock")
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise ValueError(
            f"the path of a Unix socket has at most {SOCKET_PATH_LIMIT} bytes; shorten it"
        )
    return path


def parse_address(value: object) -> Address:
    """Read `host:port`, `[ipv6]:port` or `unix:/path`. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("must be text, like 127.0.0.1:6380 or unix:/run/resproxy.sock")
    if value.startswith("tls://"):
        raise ValueError("TLS for clients comes in a later version; use host:port or unix:/path")
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        return Address(path=_socket_path("/" + path.lstrip("/") if path[:1] == "/" else path))
    match = re.fullmatch(
        r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|([\w.-]+)):(\d{1,5})", value, re.ASCII
    )
    if match is None or int(match[3]) > 65535:
        raise ValueError(
            "must be host:port, [ipv6]:port or unix:/path, "
            "like 127.0.0.1:6380, [::1]:6380 or unix:/run/resproxy.sock"
        )
    return Address(host=match[1] or match[2], port=int(match[3]))
