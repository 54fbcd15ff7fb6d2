"""Owns the Redis server that every subject is measured against."""

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import BenchmarkError, Process, find_program, free_port, running

KEYS = 1000
"""redis-benchmark -r KEYS uses key:000000000000 to key:000000000999; all of them exist."""

START_SECONDS = 15.0
RETRY_SECONDS = 0.02


class Tcp(NamedTuple):
    """An address on 127.0.0.1."""

    port: int

    def arguments(self) -> list[str]:
        """How redis-benchmark is told of it."""
        return ["-h", "127.0.0.1", "-p", str(self.port)]

    def connect(self) -> socket.socket:
        """A new connection; raises OSError if there is none."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)


class Unix(NamedTuple):
    """The path of a Unix socket."""

    path: Path

    def arguments(self) -> list[str]:
        """How redis-benchmark is told of it."""
        return ["-s", str(self.path)]

    def connect(self) -> socket.socket:
        """A new connection; raises OSError if there is none."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(5)
        try:
            sock.connect(str(self.path))
        except OSError:
            sock.close()
            raise
        return sock


Address = Tcp | Unix


def ask(sock: socket.socket, *words: bytes) -> bytes:
    """Send one command and return the payload of its reply, which must be no array.

    Raises OSError if the connection ends or stalls, BenchmarkError for an error reply.
    """
    sock.sendall(encode(*words))
    data = b""
    while b"\r\n" not in data:
        data += _receive(sock)
    head, _, rest = data.partition(b"\r\n")
    if head[:1] == b"-":
        raise BenchmarkError(f"{words[0].decode()} was answered with an error: {head.decode()}")
    if head[:1] != b"$":
        return head[1:]
    size = int(head[1:])
    while size >= 0 and len(rest) < size + 2:
        rest += _receive(sock)
    return rest[: max(size, 0)]


def encode(*words: bytes) -> bytes:
    """One command as RESP."""
    bulks = b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return b"*%d\r\n" % len(words) + bulks


def _receive(sock: socket.socket) -> bytes:
    data = sock.recv(1 << 18)
    if not data:
        raise ConnectionError("the connection was closed")
    return data


@dataclass
class Server:
    """A running Redis and the harness's own connection to it."""

    process: Process
    tcp: Tcp
    unix: Unix
    control: socket.socket
    value_size: int = 0

    def preload(self, value_size: int) -> None:
        """Make every key hold a value of `value_size` bytes, and no other key exist."""
        if value_size == self.value_size:
            return
        ask(self.control, b"FLUSHALL")
        value = b"x" * value_size
        for number in range(KEYS):
            ask(self.control, b"SET", b"key:%012d" % number, value)
        self.value_size = value_size

    def info(self, section: str) -> dict[str, str]:
        """One section of INFO, its values as text."""
        text = ask(self.control, b"INFO", section.encode()).decode()
        lines = (line.partition(":") for line in text.splitlines())
        return {name: value for name, colon, value in lines if colon}

    def connections(self) -> int:
        """How many connections it has now, without the harness's own.

        INFO rather than CLIENT LIST: it is the same number, and with 1000 connections the list
        would cost the server milliseconds in the middle of a measurement.
        """
        return int(self.info("clients")["connected_clients"]) - 1


@contextlib.contextmanager
def running_server(directory: Path, core: int) -> Iterator[Server]:
    """A fresh Redis without persistence on a free port and a Unix socket in `directory`."""
    program = find_program("redis-server", "apt-get install redis-server")
    tcp = Tcp(free_port())
    unix = Unix(directory / "server.sock")
    options = {
        "bind": "127.0.0.1",
        "port": str(tcp.port),
        "unixsocket": str(unix.path),
        "save": "",
        "appendonly": "no",
        # Above what the many idle connections need; Redis lowers it to what its files allow.
        "maxclients": "100000",
        "tcp-backlog": "4096",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with running([program, *words], core, directory / "server.log") as process:
        wait_until_serving(process, tcp)
        with tcp.connect() as control:
            yield Server(process, tcp, unix, control)


def wait_until_serving(process: Process, address: Address) -> None:
    """Return once a read through `address` reaches Redis and comes back.

    Raises BenchmarkError if the program exits, or is not there after START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with address.connect() as sock:
                ask(sock, b"GET", b"key:000000000000")
            return
        except (OSError, BenchmarkError) as error:
            if time.monotonic() > deadline:
                raise process.failure(f"does not serve after {START_SECONDS:.0f} s") from error
        status = process.wait(RETRY_SECONDS)
        if status is not None:
            raise process.failure(f"ended with status {status}")
