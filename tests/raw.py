"""Owns the raw client: nothing but a socket that sends and shows bytes, or decoded replies."""

from __future__ import annotations

import socket
import time
import zlib
from collections.abc import Callable
from typing import Any, Self

import hiredis

Address = tuple[str, int] | str  #: TCP, or the path of a Unix socket

opened: list[socket.socket] = []  #: by the test that runs; all are closed at its end


def encode(*arguments: bytes | str | int) -> bytes:
    """One request."""
    raw = [item if isinstance(item, bytes) else str(item).encode() for item in arguments]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(item), item) for item in raw)


def bulk(value: bytes | str) -> bytes:
    """One bulk string, as a reply."""
    raw = value if isinstance(value, bytes) else value.encode()
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


class Raw:
    """A blocking connection. Nothing it waits for takes longer than `timeout` seconds.

    Replies are read as bytes (read, until, rest) or decoded (reply, ask); to change between the
    two, all that has arrived must have been taken.
    """

    def __init__(self, address: Address, timeout: float = 10.0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        opened.append(self.sock)
        if family == socket.AF_INET:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._reader = hiredis.Reader(notEnoughData=...)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    @property
    def name(self) -> str:
        """This end's address, as MONITOR and CLIENT LIST show it."""
        host, port = self.sock.getsockname()
        return f"{host}:{port}"

    # Sending

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def command(self, *arguments: bytes | str | int) -> None:
        self.send(encode(*arguments))

    def half_close(self) -> None:
        """Send no more; what is owed can still be read."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the peer sees a broken connection instead of an end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    # Bytes

    def _receive(self) -> bytes:
        """What comes next; empty at the end, however that comes."""
        try:
            return self.sock.recv(1 << 20)
        except ConnectionResetError:
            return b""

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; EOFError if the connection ends before."""
        self._no_replies()
        while len(self._buffer) < size:
            data = self._receive()
            if not data:
                raise EOFError(f"closed after {bytes(self._buffer[-200:])!r}")
            self._buffer += data
        return self._take(size)

    def expect(self, data: bytes) -> None:
        """The next bytes are these."""
        found = self.read(len(data))
        assert found == data

    def until(self, end: bytes) -> bytes:
        """All bytes up to the first `end`, which is not returned; EOFError as in read()."""
        self._no_replies()
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0:
            searched = max(0, len(self._buffer) - len(end) + 1)
            data = self._receive()
            if not data:
                raise EOFError(f"closed after {bytes(self._buffer[-200:])!r}")
            self._buffer += data
        found = self._take(at)
        del self._buffer[: len(end)]
        return found

    def line(self) -> bytes:
        return self.until(b"\r\n")

    def checksum(self, size: int) -> int:
        """The CRC-32 of the next `size` bytes, which are read as fast as they come."""
        self._no_replies()
        taken = self._take(size)
        found = zlib.crc32(taken)
        left = size - len(taken)
        buffer = bytearray(1 << 20)
        while left and (count := self.sock.recv_into(buffer, min(left, len(buffer)))):
            found = zlib.crc32(memoryview(buffer)[:count], found)
            left -= count
        return found

    def rest(self) -> bytes:
        """All bytes until the connection ends."""
        self._no_replies()
        while data := self._receive():
            self._buffer += data
        return self._take(len(self._buffer))

    def silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for a while; only for what cannot be told by an event."""
        self._no_replies()
        before = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            self._buffer += self._receive() or b"(closed)"
        except TimeoutError:
            pass
        finally:
            self.sock.settimeout(before)
        return not self._buffer

    def _no_replies(self) -> None:
        assert not self._reader.has_data(), "read as a reply what has come"

    # Replies

    def reply(self) -> Any:
        """The next reply, decoded; an error reply is a hiredis.ReplyError. EOFError at the end."""
        if self._buffer:
            self._reader.feed(self._take(len(self._buffer)))
        while (found := self._reader.gets()) is ...:
            data = self._receive()
            if not data:
                raise EOFError("closed instead of a reply")
            self._reader.feed(data)
        return found

    def ask(self, *arguments: bytes | str | int) -> Any:
        """Send one command and return its reply."""
        self.command(*arguments)
        return self.reply()


def conversation(address: Address, data: bytes) -> bytes:
    """Send `data` and then the end; all that comes back until the other side ends, too.

    That is deterministic even where the answer is silence.
    """
    with Raw(address) as client:
        try:
            client.send(data)
            client.half_close()
        except OSError:
            pass  # refused before it was all sent
        return client.rest()


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Poll until the condition holds, where no event tells of it; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"did not come true within {seconds} s"
        time.sleep(0.005)
