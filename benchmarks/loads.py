"""Owns the loads: what redis-benchmark is asked to do, and how its answer is read."""

import csv
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server import KEYS, Address

CONNECT_SECONDS = 0.05 / 64
"""redis-benchmark rests for 50 ms after every 64 connections that it opens before it starts."""


@dataclass(frozen=True)
class Load:
    """One way to use the server; all numbers are redis-benchmark's."""

    name: str
    title: str
    test: str = "get"
    clients: int = 50
    value_size: int = 64
    pipeline: int = 1
    reconnect: bool = False
    most_requests: int = 2_000_000
    """An upper bound, whatever the speed."""

    @property
    def connect_seconds(self) -> float:
        """How long redis-benchmark opens connections; it does not count that time as speed."""
        return self.clients * CONNECT_SECONDS

    def command(self, program: Path, address: Address, requests: int) -> list[str]:
        """The redis-benchmark command line that sends `requests` requests to `address`."""
        return [
            str(program),
            *address.arguments(),
            *("-t", self.test),
            *("-c", str(self.clients)),
            *("-d", str(self.value_size)),
            *("-P", str(self.pipeline)),
            *("-k", "0" if self.reconnect else "1"),
            # Without -r it would read a key that is literally called key:__rand_int__.
            *("-r", str(KEYS)),
            *("-n", str(requests)),
            "--csv",
        ]


LOADS = (
    Load("get", "GET, 64 B, 50 connections"),
    Load("set", "SET, 64 B, 50 connections", test="set"),
    Load("pipeline", "GET, 64 B, 50 connections, pipeline of 16", pipeline=16),
    Load("clients1000", "GET, 64 B, 1000 connections", clients=1000),
    Load("client1", "GET, 64 B, 1 connection", clients=1),
    # Closed TCP connections hold their port for a minute, and there are some 28,000 ports.
    Load("churn", "connect + GET + close", reconnect=True, most_requests=10_000),
    Load("get16k", "GET, 16 KiB, 50 connections", value_size=16384),
    Load("set16k", "SET, 16 KiB, 50 connections", test="set", value_size=16384),
)

IDLE = "idle"
"""The name of the one load that redis-benchmark does not do: see idle.py."""


@dataclass(frozen=True)
class Speed:
    """What redis-benchmark says of one run; latencies in milliseconds."""

    ops: float
    p50: float
    p99: float


def parse_csv(output: str) -> Speed:
    """Read the output of redis-benchmark --csv with a single test.

    Warnings may stand around the table. Raises ValueError if there is no complete table.
    """
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    if len(rows) != 1:
        raise ValueError(f"expected one result from redis-benchmark, found {len(rows)}")
    row = rows[0]
    try:
        ops, p50, p99 = row["rps"], row["p50_latency_ms"], row["p99_latency_ms"]
    except KeyError as missing:
        raise ValueError(f"redis-benchmark printed no column {missing}") from None
    return Speed(float(ops), float(p50), float(p99))
