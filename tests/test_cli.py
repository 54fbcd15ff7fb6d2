"""The command line, as its users see it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from resproxy import __version__, cli
from resproxy.compiled import HOT_MODULES, compiled_modules, is_compiled
from resproxy.config import options

# -P: what is tested is the installed package, or that of PYTHONPATH, not that of the directory.
COMMAND = [sys.executable, "-P", "-m", "resproxy"]


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RESPROXY_")}
    return kept | variables


def resproxy(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class Proxy:
    """A proxy before an embedded Redis, and what it said until it was ready."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.socket = str(directory / "r.sock")
        listen = ["--listen", f"unix:{self.socket}", "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            [*COMMAND, "run", "--embedded", *listen, *arguments],
            env=environment(TMPDIR=str(directory)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if "ready" in line:
                return
        pytest.fail(f"not ready: {''.join(self.log)}")

    def stop(self, number: signal.Signals) -> tuple[str, str]:
        self.process.send_signal(number)
        return self.process.communicate(timeout=30)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(tmp_path)
    yield proxy
    if proxy.process.poll() is None:
        proxy.stop(signal.SIGTERM)


def test_version() -> None:
    done = resproxy("--version")
    first, second = done.stdout.splitlines()
    assert done.returncode == 0
    assert first.startswith(f"resproxy {__version__} (")
    assert ("(compiled)" in first) == is_compiled()
    assert re.fullmatch(r"python \d\S+, uvloop \d\S+, hiredis \d\S+", second)


def test_hot_modules_are_found() -> None:
    assert {"resproxy.wire.requests", "resproxy.wire.replies"} <= set(HOT_MODULES)
    assert set(compiled_modules()) <= set(HOT_MODULES)


def test_help_teaches() -> None:
    top, run = resproxy("--help"), resproxy("run", "--help")
    assert top.returncode == run.returncode == 0
    assert "resproxy run --embedded" in top.stdout
    assert "put the URL into RESPROXY_UPSTREAM" in run.stdout
    for name, option in options().items():
        assert (f"--{name.replace('_', '-')}" if option.flag else f"  {name} ") in run.stdout


def test_every_example_of_the_help_can_be_parsed() -> None:
    examples = re.findall(r"resproxy (run.*?)(?:  |\n)", resproxy("--help").stdout)
    assert len(examples) == 5
    for example in examples:
        assert cli.build_parser().parse_args(example.split()).function is cli.run


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "COMMAND"),
        (("walk",), "invalid choice"),
        (("run", "--upstr", "x"), "unrecognized arguments"),
        (("run", "--connections", "0"), "--connections: '0': must be a whole number"),
        (("run", "--workers", "2"), "later version"),
        (("run", "--admin", "127.0.0.1:0"), "later version"),
        (("run", "--listen", "tls://127.0.0.1:0"), "later version"),
        (("run", "--upstream", "rediss://127.0.0.1"), "later version"),
        (("run", "--embedded", "--upstream", "redis://127.0.0.1"), "exclude each other"),
        (("run", "--config", "/nonexistent.toml"), "No such file"),
    ],
)
def test_wrong_command(arguments: tuple[str, ...], hint: str) -> None:
    done = resproxy(*arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_variable() -> None:
    done = resproxy("run", RESPROXY_LISTN="x")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "resproxy: RESPROXY_LISTN: unknown variable; did you mean RESPROXY_LISTEN?\n"
    )


def test_embedded_without_a_server(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    done = resproxy("run", "--embedded", PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 1
    assert "does not start" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_and_ping(proxy: Proxy) -> None:
    done = resproxy("ping", RESPROXY_LISTEN=f"unix:{proxy.socket}")
    assert (done.returncode, done.stdout) == (0, f"unix:{proxy.socket}: +PONG\n")
    with redis.Redis(unix_socket_path=proxy.socket) as client:
        assert client.set("key", "value")
        assert client.get("key") == b"value"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_leaves_nothing_behind(proxy: Proxy, tmp_path: Path, number: signal.Signals) -> None:
    out, err = proxy.stop(number)
    assert proxy.process.returncode == 0, err
    assert list(tmp_path.iterdir()) == []
    banner = out.splitlines()
    assert banner[0].startswith(f"resproxy {__version__} (")
    assert banner[1] == f"  listen    unix:{proxy.socket}, 127.0.0.1:0"
    assert banner[3] == f"  try       redis-cli -s {proxy.socket} ping"


def test_json_only(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path, "--log-format", "json")
    out, err = proxy.stop(signal.SIGTERM)
    assert out == ""
    assert all(line.startswith("{") for line in [*proxy.log, *err.splitlines()])


def test_ping_without_a_proxy(tmp_path: Path) -> None:
    done = resproxy("ping", "--listen", f"unix:{tmp_path}/none")
    assert done.returncode == 1
    assert done.stderr == f"resproxy: unix:{tmp_path}/none: No such file or directory\n"


def test_ping_of_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = subprocess.Popen(
            [*COMMAND, "ping", "--listen", f"127.0.0.1:{port}"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        client, _ = server.accept()
        with client:
            assert client.recv(64) == b"*1\r\n$4\r\nPING\r\n"
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n")
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, f"127.0.0.1:{port}: HTTP/1.1 400 Bad Request\n")
