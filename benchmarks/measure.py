"""Owns one measurement: a load against a subject, with everybody on the core where they belong."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.loads import Load, Speed, parse_csv
from benchmarks.processes import BenchmarkError, running
from benchmarks.results import Sample
from benchmarks.server import Address, Server
from benchmarks.subjects import Subject

LOAD_SECONDS = 60.0
"""No run of redis-benchmark may take longer."""

COUNT_AFTER = 0.2
"""Seconds with all connections open, after which the server's are counted."""

FIRST_REQUESTS = 500
"""Where the warm-up begins that also tells how fast a subject is."""
FIRST_GROWTH = 8
FIRST_SECONDS = 0.1
"""A warm-up tells the speed if it took that long."""

WARM_UP_SHARE = 0.15
"""Of the requests of a measurement, those that are sent before it to warm up."""


@dataclass(frozen=True)
class Placement:
    """Which core everybody runs on."""

    name: str
    title: str
    server_core: int
    proxy_core: int
    load_core: int


def placements(server_core: int, proxy_core: int) -> dict[str, Placement]:
    """The two placements, by name."""
    return {
        "A": Placement(
            "A", "Redis and load on one core, proxy on another",
            server_core, proxy_core, load_core=server_core,
        ),
        "B": Placement(
            "B", "Redis alone on one core, load and proxy share another",
            server_core, proxy_core, load_core=proxy_core,
        ),
    }  # fmt: skip


class Measurer:
    """Runs loads against subjects before one server."""

    def __init__(self, tool: Path, server: Server, seconds: float) -> None:
        """`tool` is redis-benchmark; a measurement takes about `seconds`."""
        self._tool = tool
        self._server = server
        self._seconds = seconds
        self._requests: dict[tuple[str, str, str], int] = {}

    def measure(
        self, placement: Placement, load: Load, subject: Subject, directory: Path
    ) -> Sample:
        """Start the subject in `directory`, warm it up, measure it and stop it.

        Raises BenchmarkError if the subject does not start or the load does not finish.
        """
        server = self._server
        server.preload(load.value_size)
        with subject.start(server, directory, placement.proxy_core) as running_subject:
            address, proxy = running_subject.address, running_subject.proxy
            requests = self._warm_up(placement, load, subject, address, directory)

            before = Counts.read(server, load.test)
            server_cpu = server.process.cpu_ns()
            proxy_cpu = proxy.cpu_ns() if proxy else 0
            speed, connections = self._run(placement, load, address, requests, directory)
            server_us = (server.process.cpu_ns() - server_cpu) / 1000 / requests
            proxy_us = (proxy.cpu_ns() - proxy_cpu) / 1000 / requests if proxy else None
            after = Counts.read(server, load.test)

            return Sample(
                ops=speed.ops,
                p50=speed.p50,
                p99=speed.p99,
                proxy_cpu=proxy_us,
                server_cpu=server_us,
                connections=connections,
                rss=proxy.rss() if proxy else None,
                faults=after.faults_since(before, requests),
            )

    def _warm_up(
        self,
        placement: Placement,
        load: Load,
        subject: Subject,
        address: Address,
        directory: Path,
    ) -> int:
        """Warm the subject up, and return how many requests its measurement should have."""
        cell = (placement.name, load.name, subject.name)
        known = self._requests.get(cell)
        if known is not None:
            share = max(int(known * WARM_UP_SHARE), load.clients)
            self._run(placement, load, address, share, directory)
            return known
        requests = max(FIRST_REQUESTS, load.clients)
        speed, _ = self._run(placement, load, address, requests, directory)
        while requests / speed.ops < FIRST_SECONDS and requests < load.most_requests:
            requests = min(requests * FIRST_GROWTH, load.most_requests)
            speed, _ = self._run(placement, load, address, requests, directory)
        wanted = max(int(speed.ops * self._seconds), 2 * load.clients)
        self._requests[cell] = min(wanted, load.most_requests)
        return self._requests[cell]

    def _run(
        self, placement: Placement, load: Load, address: Address, requests: int, directory: Path
    ) -> tuple[Speed, int | None]:
        """Run redis-benchmark once; the server's connections are None if it ended too soon."""
        command = load.command(self._tool, address, requests)
        with running(command, placement.load_core, directory / "load.log") as tool:
            status = tool.wait(load.connect_seconds + COUNT_AFTER)
            connections = None
            if status is None:
                connections = self._server.connections()
                status = tool.wait(LOAD_SECONDS)
            if status is None:
                raise tool.failure(f"did not finish within {LOAD_SECONDS:.0f} s")
            if status != 0:
                raise tool.failure(f"ended with status {status}")
            try:
                return parse_csv(tool.output()), connections
            except ValueError as error:
                raise BenchmarkError(str(error)) from error


@dataclass(frozen=True)
class Counts:
    """What the server has counted, to find requests that a subject lost or garbled."""

    calls: int
    errors: int
    misses: int

    @classmethod
    def read(cls, server: Server, command: str) -> "Counts":
        """What it has counted until now; `command` in lower case."""
        words = server.info("commandstats").get(f"cmdstat_{command}", "")
        stats = dict(word.split("=") for word in words.split(",") if word)
        errors = int(stats.get("failed_calls", 0)) + int(stats.get("rejected_calls", 0))
        misses = int(server.info("stats")["keyspace_misses"])
        return cls(int(stats.get("calls", 0)), errors, misses)

    def faults_since(self, before: "Counts", requests: int) -> int:
        """How many of `requests` requests did not do what they should since `before`."""
        lost = max(requests - (self.calls - before.calls), 0)
        return lost + self.errors - before.errors + self.misses - before.misses
