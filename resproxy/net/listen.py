"""Owns listening sockets: binding them, accepting from them, removing what they leave behind."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from typing import Any

from resproxy.config import Address

log = logging.getLogger(__name__)

BACKLOG = 4096  # connections the kernel may hold for us; it cuts this to net.core.somaxconn
_BATCH = 64  # connections accepted per turn, so that those already here are served in between
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY = 0.1  # seconds until accepting goes on when descriptors have run out


class ListenError(Exception):
    """An address that cannot be listened on; the text says which and what to do."""


class Listener:
    """One listening socket; `accepted` gets every connection, non-blocking."""

    def __init__(self, address: Address, accepted: Callable[[socket.SocketType], None]) -> None:
        """Bind and listen; accepting begins with start(). Raises ListenError."""
        self._accepted = accepted
        self._path = address.path
        try:
            self._sock = _bind(address)
        except OSError as exc:
            raise ListenError(
                f"cannot listen on {address.display}: {exc.strerror or exc}"
            ) from None
        self._family = int(self._sock.family)
        self._protocol = self._sock.proto
        self._inode = os.stat(self._path).st_ino if self._path is not None else 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def display(self) -> str:
        """The address clients may use, with the port that was really given."""
        if self._path is not None:
            return f"unix:{self._path}"
        host, port = self._sock.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Accept."""
        self._loop = loop
        loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """Stop accepting and remove the Unix socket's file, if it is still ours."""
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop = None
        self._sock.close()
        if self._path is not None:
            try:
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
            except FileNotFoundError:
                pass

    def _readable(self) -> None:
        for _ in range(_BATCH):
            try:
                fd, _ = self._sock._accept()  # type: ignore[attr-defined]
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in _NO_DESCRIPTORS:
                    raise
                self._rest(exc.strerror or str(exc))
                return
            # The C class: socket.socket() would spend longer on enums than the kernel on accept().
            sock = socket.SocketType(self._family, socket.SOCK_STREAM, self._protocol, fd)
            sock.setblocking(False)
            self._accepted(sock)

    def _rest(self, reason: str) -> None:
        """Accepting again at once would spin: the connection stays in the kernel's queue."""
        log.error("cannot accept, trying again", extra={"listen": self.display, "reason": reason})
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.call_later(_RETRY, self._go_on)

    def _go_on(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self._sock.fileno(), self._readable)


def _bind(address: Address) -> socket.socket:
    if address.path is not None:
        _remove_stale(address)
        family = socket.AF_UNIX
        where: Any = address.path
    else:
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, where = found[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if address.path is None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit both, which spares two system calls for each.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(address: Address) -> None:
    """Remove a socket file that nobody listens on; one that is alive is never taken over."""
    path = address.path
    assert path is not None
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(
            f"cannot listen on {address.display}: a file that is no socket is there; "
            "choose another path or remove it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody listens
    raise ListenError(
        f"cannot listen on {address.display}: another process listens there; "
        "stop it or choose another path"
    )
