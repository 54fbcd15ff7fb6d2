"""Owns opening one connection to the server: connect, and the handshake that gives it its state.

Happens once per link, so it is ordinary asyncio; the socket is handed on ready for use.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hiredis

from resproxy.config import Upstream
from resproxy.wire import encode


class DialError(Exception):
    """No usable connection; the text says why, without secrets."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a handshake. Where it is not required, its error changes nothing."""

    command: tuple[bytes, ...]
    required: bool = True


def identity(upstream: Upstream, resp: int, db: int) -> list[Step]:
    """The steps that make a fresh connection one of this user, RESP version and db."""
    steps = []
    password = None if upstream.password is None else upstream.password.encode()
    user = None if upstream.username is None else upstream.username.encode()
    if resp == 3:
        auth = () if password is None else (b"AUTH", user or b"default", password)
        steps.append(Step((b"HELLO", b"3", *auth)))
    elif password is not None:
        steps.append(Step((b"AUTH", password) if user is None else (b"AUTH", user, password)))
    if db:
        steps.append(Step((b"SELECT", b"%d" % db)))
    return steps


async def dial(
    upstream: Upstream, steps: Sequence[Step], limit: float
) -> tuple[socket.socket, list[object]]:
    """Connect and shake hands within `limit` seconds.

    Returns the non-blocking socket and the decoded reply of each step (an error reply that was not
    required is a hiredis.ReplyError among them). Raises DialError.
    """
    try:
        async with asyncio.timeout(limit):
            sock = await _connect(upstream)
            try:
                return sock, await _shake_hands(sock, steps)
            except BaseException:
                sock.close()
                raise
    except TimeoutError:
        raise DialError(f"no answer within {limit:g} s") from None
    except OSError as exc:
        raise DialError(exc.strerror or str(exc) or type(exc).__name__) from None


async def _connect(upstream: Upstream) -> socket.socket:
    loop = asyncio.get_running_loop()
    if upstream.path is not None:
        return await _open(socket.AF_UNIX, upstream.path)
    failure = OSError("the name has no address")
    for family, _, _, _, address in await loop.getaddrinfo(
        upstream.host, upstream.port, type=socket.SOCK_STREAM
    ):
        try:
            sock = await _open(family, address)
        except OSError as exc:
            failure = exc
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock
    raise failure


async def _open(family: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _shake_hands(sock: socket.socket, steps: Sequence[Step]) -> list[object]:
    replies: list[object] = []
    if not steps:
        return replies
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"".join(encode.command(*step.command) for step in steps))
    reader = hiredis.Reader()
    while len(replies) < len(steps):
        data = await loop.sock_recv(sock, 65536)
        if not data:
            raise DialError("the server closed the connection during the handshake")
        reader.feed(data)
        try:
            while len(replies) < len(steps) and (reply := reader.gets()) is not False:
                replies.append(reply)
        except hiredis.ProtocolError as exc:
            raise DialError(f"it does not speak RESP: {exc}") from None
        first = replies[0] if replies else None
        if isinstance(first, hiredis.ReplyError) and "max number of clients" in str(first):
            raise DialError(str(first))  # Redis says so instead of answering, and closes
    for step, reply in zip(steps, replies, strict=True):
        if step.required and isinstance(reply, hiredis.ReplyError):
            raise DialError(f"{step.command[0].decode()}: {reply}")
    return replies
