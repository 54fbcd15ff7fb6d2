"""Owns the measurement of idle connections: what each costs the proxy and the server in memory."""

import contextlib
import time
from pathlib import Path

from benchmarks.measure import Placement
from benchmarks.processes import allow_many_files
from benchmarks.results import IdleSample
from benchmarks.server import ask, running_server
from benchmarks.subjects import Subject

CLIENTS = 10_000
SPARE_FILES = 300
"""What a process has open besides connections, generously."""
SETTLE_SECONDS = 1.0
"""Time for the proxy and the server to give back what they can."""


def possible_clients(subject: Subject, wanted: int = CLIENTS) -> int:
    """How many connections the limit of open files allows, at most `wanted`."""
    files = allow_many_files() - SPARE_FILES
    through_proxy = 2 if subject.mirrors_connections and subject.program != "direct" else 1
    return min(wanted, files // through_proxy)


def measure_idle(placement: Placement, subject: Subject, directory: Path) -> IdleSample:
    """Hold connections that each did one GET open through a fresh subject to a fresh server.

    Fresh, because memory that earlier connections left behind would be used again.
    Raises BenchmarkError if a program does not start, OSError if a connection fails.
    """
    clients = possible_clients(subject)
    with (
        running_server(directory, placement.server_core) as server,
        subject.start(server, directory, placement.proxy_core) as running_subject,
        contextlib.ExitStack() as connections,
    ):
        server.preload(64)
        address, proxy = running_subject.address, running_subject.proxy
        server_before = server.process.rss()
        proxy_before = proxy.rss() if proxy else 0
        for _ in range(clients):
            client = connections.enter_context(address.connect())
            ask(client, b"GET", b"key:000000000000")
        time.sleep(SETTLE_SECONDS)
        return IdleSample(
            clients=clients,
            proxy_bytes=(proxy.rss() - proxy_before) / clients if proxy else None,
            server_bytes=(server.process.rss() - server_before) / clients,
            connections=server.connections(),
        )
