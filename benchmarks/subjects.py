"""Owns what is compared: direct connections, resproxy and its peers, and how each is started."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import PEERS, UPSTREAM_CONNECTIONS, Peer
from benchmarks.processes import BenchmarkError, Process, free_port, running
from benchmarks.results import Kind, Row
from benchmarks.server import Address, Server, Tcp, Unix, wait_until_serving


@dataclass(frozen=True)
class Running:
    """A subject that serves: where to send the load, and the proxy, if there is one."""

    address: Address
    proxy: Process | None


@dataclass(frozen=True)
class Subject(Row):
    """A row of the tables, and how to start what it stands for."""

    start: Callable[[Server, Path, int], contextlib.AbstractContextManager[Running]]
    """Start it before a server, with its files in a directory, on a core."""
    mirrors_connections: bool = False
    """It opens a server connection for every client."""


def direct(unix: bool) -> Subject:
    """The server itself, no proxy."""

    @contextlib.contextmanager
    def start(server: Server, *_: object) -> Iterator[Running]:
        yield Running(server.unix if unix else server.tcp, None)

    return Subject(f"direct-{'unix' if unix else 'tcp'}", "direct", Kind.DIRECT, unix, start, True)


def resproxy(label: str, binary: Path, unix: bool) -> Subject:
    """A build of resproxy. It always listens on both transports; one of them gets the load."""

    @contextlib.contextmanager
    def start(server: Server, directory: Path, core: int) -> Iterator[Running]:
        tcp = Tcp(free_port())
        sock = Unix(directory / "r.sock")
        command = [
            str(binary),
            "run",
            *("--upstream", f"redis://127.0.0.1:{server.tcp.port}"),
            *("--listen", f"127.0.0.1:{tcp.port}"),
            *("--listen", f"unix:{sock.path}"),
            *("--connections", str(UPSTREAM_CONNECTIONS)),
        ]
        with running(command, core, directory / "resproxy.log") as process:
            wait_until_serving(process, tcp)
            wait_until_serving(process, sock)
            yield Running(sock if unix else tcp, process)

    return Subject(f"{label}-{'unix' if unix else 'tcp'}", label, Kind.RESPROXY, unix, start)


def peer(name: str, known: Peer, program: Path) -> Subject:
    """Another proxy, over TCP."""

    @contextlib.contextmanager
    def start(server: Server, directory: Path, core: int) -> Iterator[Running]:
        address = Tcp(free_port())
        config = directory / known.config_name
        config.write_text(known.config(address.port, server.tcp.port))
        command = known.command(program, config)
        with running(command, core, directory / f"{name}.log") as process:
            wait_until_serving(process, address)
            yield Running(address, process)

    mirrors = known.mirrors_connections
    return Subject(name, known.program, Kind.PEER, False, start, mirrors)


@dataclass(frozen=True)
class Inventory:
    """What can be measured here, and what cannot."""

    subjects: list[Subject]
    versions: dict[str, str]
    missing: dict[str, str]
    """Names of what is not installed, and the command that installs each."""


def take_inventory(builds: dict[str, Path]) -> Inventory:
    """Look for all subjects; `builds` are resproxy binaries by label."""
    subjects = [direct(unix=False), direct(unix=True)]
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for label, binary in builds.items():
        if binary.is_file():
            subjects += [resproxy(label, binary, unix=False), resproxy(label, binary, unix=True)]
            versions[label] = _first_line(binary, "--version").removeprefix("resproxy ")
        else:
            missing[label] = "make build"
    for name, known in PEERS.items():
        program = known.find()
        if program is None:
            missing[name] = known.install
        else:
            subjects.append(peer(name, known, program))
            versions[known.program] = program_version(program, known.version_option)
    return Inventory(subjects, versions, missing)


def default_builds() -> dict[str, Path]:
    """The resproxy that is installed beside the running Python."""
    return {"resproxy": Path(sys.executable).with_name("resproxy")}


def program_version(program: Path, option: str = "--version") -> str:
    """The version number of a program, without the words around it."""
    text = _first_line(program, option)
    found = re.search(r"\d+\.\d+\.\d+", text)
    return found.group() if found else text


def _first_line(program: Path, option: str) -> str:
    """What a program says of its version. Raises BenchmarkError if it cannot be run."""
    try:
        answer = subprocess.run(
            [program, option], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchmarkError(f"cannot run {program} {option}: {error}") from error
    lines = (answer.stdout + answer.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"
