"""Owns the report: tables and targets as Markdown that also reads well in a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.measure import Placement
from benchmarks.results import DIRECT, Results, Row, median, ratio
from benchmarks.targets import EVERY_PEER, IDLE_BYTES, Target, judge, judge_idle

UNKNOWN = "-"
QUIET_SPREAD = 0.15
"""On a quiet machine rounds do not lie further apart than that."""

METRIC_TITLES = {
    "ops": "ops/s",
    "p50": "p50 ms",
    "proxy_cpu": "proxy CPU µs/request",
    "server_cpu": "Redis CPU µs/request",
}


@dataclass(frozen=True)
class Setting:
    """What a reader must know to judge the figures."""

    when: str
    machine: str
    versions: dict[str, str]
    missing: dict[str, str]
    """Names of what is not installed, and the command that installs each."""
    rounds: int
    seconds: float
    placements: dict[str, Placement]
    plot: str | None
    """File name of the plot, if there is one."""


def markdown(results: Results, setting: Setting) -> str:
    """The whole report."""
    parts = [_head(setting)]
    spread = results.typical_spread()
    if spread is not None and spread > QUIET_SPREAD:
        parts.append(
            f"**The machine was not quiet: rounds lie {spread:.0%} apart. Trust CPU figures more"
            " than ops/s and latency, and repeat this when nothing else runs.**"
        )
    for placement in results.placements:
        parts.append(f"## Placement {placement}: {setting.placements[placement].title}")
        for load in results.loads:
            parts.append(f"### {load.title} ({load.name}, {placement})")
            parts.append(_load_table(results, placement, load.name))
    if results.idle:
        parts += ["## Idle connections", _idle_table(results)]
    parts += ["## Targets", _targets(results)]
    if results.failures:
        parts += ["## Not measured", "\n".join(f"- {line}" for line in results.failures)]
    return "\n\n".join(parts) + "\n"


def _head(setting: Setting) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    summary = (
        f"{setting.when}; {setting.machine}; {versions}. Medians; rounds: {setting.rounds}, each"
        f" about {setting.seconds:g} s; [how to read this](../README.md)."
    )
    legend = (
        '"x direct" refers to a direct TCP connection in the same placement, "x peer" to the best'
        " peer's figure; CPU is user + system time per request; conns are connections to Redis"
        " under load; spread is (fastest - slowest) / median ops/s."
    )
    lines = ["# Benchmark results", summary, legend]
    lines += [
        f"Missing here: {name}; install it with `{command}`."
        for name, command in setting.missing.items()
    ]
    if setting.plot:
        lines.append(f"![Throughput and CPU per request]({setting.plot})")
    return "\n\n".join(lines)


LOAD_HEADER = (
    "subject", "ops/s", "x direct", "x peer", "p50 ms", "p99 ms", "proxy CPU µs", "x peer",
    "Redis CPU µs", "x direct", "conns", "proxy MiB", "spread",
)  # fmt: skip


def _load_table(results: Results, placement: str, load: str) -> str:
    direct = results.median(placement, load, DIRECT)
    best_ops = results.best_peer(placement, load, "ops")
    best_cpu = results.best_peer(placement, load, "proxy_cpu")
    lines: list[Sequence[str]] = []
    faulty: list[str] = []
    for row in results.rows:
        sample = results.median(placement, load, row.name)
        if sample is None:
            continue
        spread = results.spread(placement, load, row.name)
        lines.append(
            (
                row.name,
                f"{sample.ops:,.0f}",
                number(ratio(sample.ops, direct.ops if direct else None), 2),
                number(ratio(sample.ops, best_ops), 2),
                number(sample.p50, 3),
                number(sample.p99, 3),
                number(sample.proxy_cpu, 1),
                number(ratio(sample.proxy_cpu, best_cpu), 2),
                number(sample.server_cpu, 1),
                number(ratio(sample.server_cpu, direct.server_cpu if direct else None), 2),
                number(sample.connections, 0),
                number(ratio(sample.rss, 1 << 20), 1),
                UNKNOWN if spread is None else f"{spread:.0%}",
            )
        )
        faulty += _faults(results, placement, load, row)
    return "\n\n".join([table(LOAD_HEADER, lines), *faulty])


def _faults(results: Results, placement: str, load: str, row: Row) -> list[str]:
    faults = sum(sample.faults for sample in results.samples[placement, load, row.name])
    if not faults:
        return []
    return [f"**{row.name}: {faults:.0f} requests were lost, found nothing or met an error.**"]


def _idle_table(results: Results) -> str:
    lines = []
    for row in results.rows:
        samples = results.idle.get(row.name)
        if samples:
            middle = median(samples)
            lines.append(
                (
                    row.name,
                    f"{middle.clients:,.0f}",
                    number(middle.proxy_bytes, 0),
                    number(middle.server_bytes, 0),
                    f"{middle.connections:,.0f}",
                )
            )
    header = ("subject", "connections", "proxy bytes each", "Redis bytes each", "conns")
    return table(header, lines)


def _targets(results: Results) -> str:
    header = ("target", "subject", "measured", "needed", "verdict")
    lines: list[Sequence[str]] = [
        (
            describe(verdict.target),
            verdict.subject,
            figure(verdict.target.metric, verdict.value),
            figure(verdict.target.metric, verdict.bound),
            {True: "met", False: "**missed**", None: "not measured"}[verdict.met],
        )
        for verdict in judge(results)
    ]
    lines += [
        (
            "idle connections: proxy memory each",
            idle.subject,
            f"{idle.value:,.0f} bytes",
            f"{IDLE_BYTES:,} bytes",
            "met" if idle.met else "**missed**",
        )
        for idle in judge_idle(results)
    ]
    return (
        table(header, lines)
        if lines
        else "No target applies to the subjects and loads of this run."
    )


def describe(target: Target) -> str:
    """A target in words."""
    relation = "at least" if target.at_least else "at most"
    baseline = f"{target.factor:g} x {target.baseline}"
    if target.baseline == EVERY_PEER and target.factor == 1:
        baseline = EVERY_PEER + "'s"
    where = f"{target.placement}, {target.load}"
    return f"{where}: {METRIC_TITLES[target.metric]} {relation} {baseline}"


def figure(metric: str, value: float | None) -> str:
    """One value of a field of Sample."""
    return number(value, {"ops": 0, "p50": 3}.get(metric, 1))


def number(value: float | None, decimals: int) -> str:
    """A number with thousands separators; what is unknown has a sign of its own."""
    return UNKNOWN if value is None else f"{value:,.{decimals}f}"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *lines)) for i in range(len(header))]

    def one(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([first, *rest]) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([one(header), one(rule), *(one(line) for line in lines)])
