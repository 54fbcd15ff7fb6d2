"""The beginning and the end of the proxy: listeners, signals, draining, limits."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raw import Raw, bulk, encode, eventually
from servers import Proxy, RedisServer


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`resproxy run …`, which is expected to end by itself."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RESPROXY_")}
    command = [sys.executable, "-m", "resproxy", "run", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=20, check=False
    )


def refuses_connections(proxy: Proxy) -> bool:
    try:
        Raw(proxy.tcp).close()
    except ConnectionRefusedError:
        return True
    return False


# The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(server: RedisServer, number: int) -> None:
    with Proxy(server.url) as proxy:
        idle = proxy.client()
        assert idle.ask("PING") == b"PONG"
        assert proxy.stop(number) == 0
        assert idle.rest() == b""
        assert refuses_connections(proxy)
        assert not os.path.exists(proxy.unix)
        assert "Traceback" not in proxy.log()
    eventually(lambda: not server.connections())


def test_what_is_in_flight_is_finished(own_server: RedisServer) -> None:
    with Proxy(own_server.url, connections=2) as proxy:
        clients = [proxy.client() for _ in range(20)]
        for client in clients:
            assert client.ask("PING") == b"PONG"
        own_server.pause()
        for number, client in enumerate(clients):
            client.send(encode("SET", f"k{number}", number) + encode("GET", f"k{number}"))
        # A round trip that needs no server shows that all has been read.
        assert clients[0].silent(0.05)
        with Raw(proxy.unix) as last:
            assert last.ask("CLIENT", "GETNAME") is None
        proxy.send_signal(signal.SIGTERM)
        proxy.logged(" stopping ")
        eventually(lambda: refuses_connections(proxy))
        own_server.resume()
        for number, client in enumerate(clients):
            assert client.rest() == b"+OK\r\n" + bulk(str(number))
        assert proxy.wait() == 0
        assert "cut off" not in proxy.log()


def test_a_large_reply_is_finished(server: RedisServer) -> None:
    server.ask("SET", "large", b"x" * 30_000_000)
    with Proxy(server.url) as proxy, proxy.client() as client:
        client.command("GET", "large")
        client.expect(b"$30000000\r\n")
        proxy.send_signal(signal.SIGTERM)
        proxy.logged(" stopping ")
        assert client.rest() == b"x" * 30_000_000 + b"\r\n"
        assert proxy.wait() == 0


@pytest.mark.parametrize(
    "command", [("BLPOP", "none", 0), ("SUBSCRIBE", "x"), ("MONITOR",), ("WATCH", "x"), ("MULTI",)]
)
def test_pinned_clients_do_not_delay_the_end(
    server: RedisServer, command: tuple[str | int, ...]
) -> None:
    with Proxy(server.url, drain_timeout=10) as proxy, proxy.client() as client:
        before = len(server.connections())
        client.command(*command)
        eventually(lambda: len(server.connections()) > before)
        if command[0] != "BLPOP":
            client.sock.recv(1)
        started = time.monotonic()
        assert proxy.stop() == 0
        assert time.monotonic() - started < 5


def test_the_end_comes_within_the_drain_timeout(own_server: RedisServer) -> None:
    """The server hangs: replies that are due never come."""
    with Proxy(own_server.url, drain_timeout=0.3) as proxy, proxy.client() as client:
        assert client.ask("PING") == b"PONG"
        own_server.pause()
        client.command("PING")
        assert client.silent(0.05)
        started = time.monotonic()
        assert proxy.stop() == 0
        assert 0.25 < time.monotonic() - started < 5
        assert "clients cut off clients=1" in proxy.log()
        assert client.rest() == b""


def test_the_end_while_a_client_never_reads(server: RedisServer) -> None:
    server.ask("SET", "large", b"x" * 30_000_000)
    with Proxy(server.url, drain_timeout=0.3) as proxy, proxy.client() as client:
        client.command("GET", "large")
        client.expect(b"$30000000\r\n")
        assert proxy.stop() == 0


def test_the_end_without_a_server(own_server: RedisServer) -> None:
    own_server.stop()
    with (
        Proxy(own_server.url, connected=False, drain_timeout=0.3) as proxy,
        proxy.client() as client,
    ):
        client.command("PING")
        proxy.logged("upstream unreachable")
        assert proxy.stop() == 0
        assert "Traceback" not in proxy.log()


# Unix sockets


def test_a_stale_socket_file_is_replaced(server: RedisServer, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    with Proxy(server.url, listen=(f"unix:{path}",)) as proxy:
        with Raw(path) as client:
            assert client.ask("PING") == b"PONG"
        assert proxy.stop() == 0
    assert not os.path.exists(path)


def test_a_killed_proxy_can_be_started_again(server: RedisServer, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with Proxy(server.url, listen=(f"unix:{path}",)) as proxy:
        proxy.kill()
    assert os.path.exists(path)
    with Proxy(server.url, listen=(f"unix:{path}",)), Raw(path) as client:
        assert client.ask("PING") == b"PONG"


def test_a_live_socket_is_refused(server: RedisServer, proxy: Proxy) -> None:
    result = run("--upstream", server.url, "--listen", f"unix:{proxy.unix}")
    assert result.returncode == 1
    assert f"cannot listen on unix:{proxy.unix}: another process listens there" in result.stderr
    assert "Traceback" not in result.stderr
    with Raw(proxy.unix) as client:
        assert client.ask("PING") == b"PONG"


def test_another_file_is_not_removed(server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    result = run("--upstream", server.url, "--listen", f"unix:{path}")
    assert result.returncode == 1
    assert "a file that is no socket is there" in result.stderr
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there(server: RedisServer, tmp_path: Path) -> None:
    result = run("--upstream", server.url, "--listen", f"unix:{tmp_path}/no/s")
    assert result.returncode == 1
    assert "No such file or directory" in result.stderr
    assert "Traceback" not in result.stderr


# Listeners and limits


def test_a_port_in_use(server: RedisServer, proxy: Proxy) -> None:
    address = proxy.listening[0]
    result = run("--upstream", server.url, "--listen", address)
    assert result.returncode == 1
    assert f"cannot listen on {address}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


def test_several_listeners(server: RedisServer, tmp_path: Path) -> None:
    listen = ("127.0.0.1:0", f"unix:{tmp_path}/a", "127.0.0.1:0", f"unix:{tmp_path}/b")
    with Proxy(server.url, listen=listen) as proxy:
        assert len(proxy.listening) == 4
        for number, address in enumerate(proxy.listening):
            path = address.removeprefix("unix:")
            host, _, port = address.rpartition(":")
            with Raw(path if address.startswith("unix:") else (host, int(port))) as client:
                assert client.ask("INCR", "visits") == number + 1
        assert proxy.stop() == 0
    assert not list(tmp_path.iterdir())


def test_max_clients(server: RedisServer) -> None:
    with Proxy(server.url, max_clients=3) as proxy:
        clients = [proxy.client() for _ in range(3)]
        for client in clients:
            assert client.ask("PING") == b"PONG"
        with proxy.client() as refused:
            assert refused.rest() == b"-ERR max number of clients reached\r\n"
        clients.pop().close()

        def accepted() -> bool:
            with proxy.client() as client:
                client.half_close()
                return client.rest() == b""

        eventually(accepted)
        assert clients[0].ask("PING") == b"PONG"


def test_many_connections_come_and_go(proxy: Proxy) -> None:
    for turn in range(300):
        with Raw(proxy.unix if turn % 2 else proxy.tcp) as client:
            assert client.ask("ECHO", turn) == b"%d" % turn


def test_unused_pools_are_closed(own_server: RedisServer) -> None:
    with Proxy(own_server.url, connections=2, pool_idle=0.1) as proxy, proxy.client() as client:
        for _ in range(2):
            for db in range(3):
                client.ask("SELECT", db)
                assert client.ask("GET", "x") is None
            assert own_server.links()
            eventually(lambda: not own_server.links())


# The embedded Redis


def test_embedded() -> None:
    with Proxy(None) as proxy:
        with proxy.client() as client:
            assert client.ask("SET", "key", "value") == b"OK"
            assert client.ask("GET", "key") == b"value"
            info = client.ask("INFO", "server")
        pid = int(info.partition(b"process_id:")[2].split()[0])
        os.kill(pid, 0)
        assert proxy.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
