"""Owns the command line: which subjects, loads and placements are run, in which order."""

import argparse
import datetime as dt
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from benchmarks.idle import measure_idle, possible_clients
from benchmarks.loads import IDLE, LOADS
from benchmarks.measure import Measurer, Placement, placements
from benchmarks.processes import BenchmarkError, allow_many_files, find_program
from benchmarks.report import Setting, markdown
from benchmarks.results import Results, Row
from benchmarks.server import running_server
from benchmarks.subjects import Inventory, Subject, default_builds, program_version, take_inventory

IDLE_ROUNDS = 3
"""At most: memory hardly varies between rounds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    try:
        _run(options)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("benchmarks: interrupted, nothing was saved", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    loads = [*(load.name for load in LOADS), IDLE]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare resproxy with direct connections and with other Redis proxies.",
    )
    add = parser.add_argument
    add("--rounds", type=_positive, metavar="N", help="measurements of each cell, default 5")
    add("--seconds", type=float, default=1.5, metavar="S", help="of each measurement, default 1.5")
    add("--quick", action="store_true", help="2 short rounds: only to see that all works")
    add("--placements", type=_names(["A", "B"]), default=["A", "B"], help="A, B or A,B (default)")
    add("--loads", type=_names(loads), default=loads, help=f"some of {','.join(loads)}")
    add(
        "--subjects",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help="subjects, programs or kinds (direct, resproxy, peer); direct-tcp is always measured",
    )
    add(
        "--resproxy",
        type=_build,
        action="append",
        metavar="[LABEL=]PATH",
        help="a resproxy to measure, instead of the one beside this Python; may be repeated",
    )
    add(
        "--cores",
        type=_cores,
        metavar="N,M",
        help="cores for Redis and for the proxy, default the first two there are",
    )
    add(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        metavar="DIR",
        help="where latest.md, latest.json and latest.png go, default benchmarks/results",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _names(known: list[str]) -> "argparse._ActionType":
    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return [name for name in known if name in names]

    return parse


def _build(text: str) -> tuple[str, Path]:
    label, _, path = text.rpartition("=")
    binary = Path(path).absolute()
    if not binary.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {path}; give a resproxy command")
    return label or "resproxy", binary


def _cores(text: str) -> tuple[int, int]:
    try:
        first, second = (int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form N,M") from None
    if first == second or not {first, second} <= os.sched_getaffinity(0):
        raise argparse.ArgumentTypeError(f"{text!r} are not two cores that may be used here")
    return first, second


def _end(_number: int, _frame: FrameType | None) -> None:
    # As an exception, so that every process is stopped on the way out.
    raise KeyboardInterrupt


def _run(options: argparse.Namespace) -> None:
    builds = dict(options.resproxy) if options.resproxy else default_builds()
    inventory = take_inventory(builds)
    subjects = _choose(inventory, options.subjects)
    tool = find_program("redis-benchmark", "apt-get install redis-tools")
    redis = find_program("redis-server", "apt-get install redis-server")
    places = placements(*(options.cores or _first_two_cores()))
    rounds = options.rounds or (2 if options.quick else 5)
    seconds = 0.4 if options.quick else options.seconds

    machine = _machine()
    # The harness itself stays off the server's core.
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {places["A"].server_core})
    allow_many_files()
    loads = [load for load in LOADS if load.name in options.loads]
    results = Results(options.placements, loads, [_row(subject) for subject in subjects])
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        subjects = _startable(results, subjects, places["A"], root)
        chosen = [places[placement] for placement in options.placements]
        _measure_loads(results, subjects, chosen, rounds, seconds, tool, root)
        if IDLE in options.loads:
            _measure_idle(results, subjects, places["A"], min(rounds, IDLE_ROUNDS), root)

    options.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        when=dt.datetime.now(dt.UTC).date().isoformat(),
        machine=machine,
        versions={"Redis": program_version(redis), **inventory.versions},
        missing=inventory.missing,
        rounds=rounds,
        seconds=seconds,
        placements=places,
        plot=_plot(results, options.out / "latest.png"),
    )
    text = markdown(results, setting)
    (options.out / "latest.md").write_text(text)
    raw = {"versions": setting.versions, "machine": setting.machine, **results.raw()}
    (options.out / "latest.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(text)
    _say(f"saved as {options.out / 'latest.md'}")


def _choose(inventory: Inventory, wanted: list[str] | None) -> list[Subject]:
    """The subjects to measure. All ratios need direct-tcp, so it is always among them."""
    if wanted is None:
        return inventory.subjects
    known = {word for subject in inventory.subjects for word in _words(subject)}
    for word in wanted:
        if word in inventory.missing:
            raise BenchmarkError(f"{word} is missing; install it with: {inventory.missing[word]}")
        if word not in known:
            raise BenchmarkError(f"no subject is called {word!r}; there are {sorted(known)}")
    names = {*wanted, "direct-tcp"}
    return [subject for subject in inventory.subjects if names & _words(subject)]


def _words(subject: Subject) -> set[str]:
    """What --subjects may call it."""
    return {subject.name, subject.program, subject.kind.value}


def _startable(
    results: Results, subjects: list[Subject], placement: Placement, root: Path
) -> list[Subject]:
    """Try each subject once, so that one that does not work costs its time only once."""
    startable = []
    with running_server(_directory(root, "try"), placement.server_core) as server:
        for subject in subjects:
            try:
                with (
                    tempfile.TemporaryDirectory(dir=root) as name,
                    subject.start(server, Path(name), placement.proxy_core),
                ):
                    startable.append(subject)
            except (BenchmarkError, OSError) as error:
                results.failures.append(f"{subject.name}: {error}")
                _say(results.failures[-1])
    return startable


def _measure_loads(
    results: Results,
    subjects: list[Subject],
    chosen: list[Placement],
    rounds: int,
    seconds: float,
    tool: Path,
    root: Path,
) -> None:
    """All rounds of all loads. Rounds are outermost, so that a noisy minute hits all alike."""
    cells = [
        (placement, number, load)
        for placement in chosen
        for number in range(rounds)
        for load in results.loads
    ]
    if not cells:
        return
    failed: set[tuple[str, str, str]] = set()
    server_directory = _directory(root, "server")
    with running_server(server_directory, chosen[0].server_core) as server:
        measurer = Measurer(tool, server, seconds)
        for step, (placement, number, load) in enumerate(cells, 1):
            for subject in _rotated(subjects, number):
                cell = (placement.name, load.name, subject.name)
                if cell in failed:
                    continue
                words = f"[{step}/{len(cells)}] {placement.name} round {number + 1} {load.name}"
                with tempfile.TemporaryDirectory(dir=root) as name:
                    try:
                        sample = measurer.measure(placement, load, subject, Path(name))
                    except (BenchmarkError, OSError) as error:
                        # Not tried again: it may have cost a minute.
                        failed.add(cell)
                        results.failures.append(f"{' '.join(cell)}: {error}")
                        _say(f"{words} {subject.name}: failed: {error}")
                        continue
                results.add(*cell, sample)
                _say(f"{words} {subject.name}: {_short(sample.ops, sample.proxy_cpu)}")


def _measure_idle(
    results: Results, subjects: list[Subject], placement: Placement, rounds: int, root: Path
) -> None:
    for number in range(rounds):
        for subject in _rotated(subjects, number):
            with tempfile.TemporaryDirectory(dir=root) as name:
                try:
                    sample = measure_idle(placement, subject, Path(name))
                except (BenchmarkError, OSError) as error:
                    results.failures.append(f"{IDLE} {subject.name}: {error}")
                    continue
            results.idle.setdefault(subject.name, []).append(sample)
            _say(f"{IDLE} round {number + 1} {subject.name}: {possible_clients(subject)} clients")


def _rotated(subjects: list[Subject], number: int) -> Iterator[Subject]:
    """The subjects in another order each round, so that nobody always comes first."""
    start = number % len(subjects)
    yield from subjects[start:]
    yield from subjects[:start]


def _row(subject: Subject) -> Row:
    return Row(subject.name, subject.program, subject.kind, subject.unix)


def _directory(root: Path, name: str) -> Path:
    path = root / name
    path.mkdir()
    return path


def _first_two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchmarkError("this needs two cores; only one may be used here")
    return cores[0], cores[1]


def _machine() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    cores = len(os.sched_getaffinity(0))
    model = models[0] if models else platform.machine()
    return f"{model}, {cores} cores, Linux {platform.release().partition('-')[0]}"


def _plot(results: Results, path: Path) -> str | None:
    """Draw the plot and return its file name, or None if there is nothing to draw or draw with."""
    if not results.samples:
        return None
    try:
        from benchmarks.plot import draw  # noqa: PLC0415  matplotlib may be missing
    except ImportError as error:
        _say(f"no plot: {error}; install matplotlib to get one")
        return None
    draw(results, path)
    return path.name


def _short(ops: float, proxy_cpu: float | None) -> str:
    return f"{ops:,.0f} ops/s" + ("" if proxy_cpu is None else f", {proxy_cpu:.1f} us proxy CPU")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
