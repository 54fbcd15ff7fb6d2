"""Owns child processes: where they run, what they cost, and that none is left behind."""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

STOP_SECONDS = 3.0


class BenchmarkError(Exception):
    """Something that the person who runs the benchmark must know, in words for them."""


class Process:
    """One running program, pinned to one core, its output in a log file."""

    def __init__(self, command: Sequence[str | Path], core: int, log: Path) -> None:
        """Start `command`; raise BenchmarkError if it cannot be started."""
        self.name = Path(command[0]).name
        self._log = log
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RESPROXY_")}
        with log.open("wb") as output, pinned(core):
            try:
                # A session of its own: ctrl-c reaches the harness alone, which then stops the rest.
                self._child = subprocess.Popen(
                    [str(word) for word in command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=log.parent,
                    env=environment,
                    start_new_session=True,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise BenchmarkError(f"cannot start {command[0]}: {error}") from error

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    def cpu_ns(self) -> int:
        """User and system time of all its threads so far, in nanoseconds."""
        return cpu_ns(self.pid)

    def rss(self) -> int:
        """Resident memory in bytes. smaps_rollup, as the counters in `status` may lag behind."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
        raise BenchmarkError(f"{self.name}: the kernel reports no resident memory")

    def wait(self, seconds: float) -> int | None:
        """Its exit status, or None if it still runs after `seconds`."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def output(self) -> str:
        """What it has printed so far, standard output and error together."""
        return self._log.read_text(errors="replace")

    def failure(self, what: str) -> BenchmarkError:
        """An error that says what went wrong and how its output ended."""
        end = " / ".join(self.output().splitlines()[-6:])
        return BenchmarkError(f"{self.name} {what}; its output ended with: {end or 'nothing'}")

    def stop(self) -> None:
        """End it: first politely, after STOP_SECONDS for certain. May be called twice."""
        if self._child.poll() is None:
            self._child.terminate()
            if self.wait(STOP_SECONDS) is None:
                self._child.kill()
                self._child.wait()


@contextlib.contextmanager
def running(command: Sequence[str | Path], core: int, log: Path) -> Iterator[Process]:
    """A Process that is stopped on the way out, whatever happens."""
    process = Process(command, core, log)
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """Keep this process on one core meanwhile; what it starts will stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_ns(pid: int) -> int:
    """User and system time of all threads of `pid`, in nanoseconds.

    The first field of schedstat is the exact run time. Kernels without it only tell clock ticks.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except FileNotFoundError:
            if task.exists():
                return _cpu_ns_in_ticks(pid)
    return total


def _cpu_ns_in_ticks(pid: int) -> int:
    # The name of the program is in parentheses and may contain blanks: count from its end.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def allow_many_files() -> int:
    """Raise the limit of open files, also for what is started later, to the hard limit.

    Returns that limit.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def find_program(name: str, install: str) -> Path:
    """The path of a program; BenchmarkError, which says how to install it, if there is none."""
    found = shutil.which(name)
    if found is None:
        raise BenchmarkError(f"{name} is not on PATH; install it with: {install}")
    return Path(found)
