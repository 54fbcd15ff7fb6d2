"""Owns the measured figures: samples, their medians, and how one subject compares with others."""

import enum
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

from benchmarks.loads import Load


class Kind(enum.Enum):
    """What a subject is in a comparison."""

    DIRECT = "direct"
    RESPROXY = "resproxy"
    PEER = "peer"


@dataclass(frozen=True)
class Row:
    """One subject, as the tables show it."""

    name: str
    program: str
    """What it shares with its other transports and variants; for resproxy the build's label."""
    kind: Kind
    unix: bool


DIRECT = "direct-tcp"
"""The row that all ratios "to direct" refer to, whatever the transport of the other side."""


@dataclass(frozen=True)
class Sample:
    """One measurement, or the medians of several. CPU is user and system time together."""

    ops: float
    """Requests per second."""
    p50: float
    """Milliseconds, as p99; a connection's opening is not part of it."""
    p99: float
    proxy_cpu: float | None
    """Microseconds per request; None without a proxy."""
    server_cpu: float
    """Microseconds per request."""
    connections: float | None
    """Server connections under load; None if the load ended before they were counted."""
    rss: float | None
    """The proxy's resident memory after the load, in bytes; None without a proxy."""
    faults: float = 0
    """Requests that never reached the server, found no value or were answered with an error."""


@dataclass(frozen=True)
class IdleSample:
    """The cost of connections that did one request and then nothing; bytes per connection."""

    clients: float
    proxy_bytes: float | None
    """None without a proxy."""
    server_bytes: float
    connections: float
    """Server connections, while all clients are connected."""


AnySample = TypeVar("AnySample", Sample, IdleSample)


def median(samples: Sequence[AnySample]) -> AnySample:
    """Field by field, the median of what is known. `samples` must not be empty."""
    middle: dict[str, float | None] = {}
    for each in fields(samples[0]):
        known = [v for s in samples if (v := getattr(s, each.name)) is not None]
        middle[each.name] = statistics.median(known) if known else None
    return type(samples[0])(**middle)  # type: ignore[arg-type]


def ratio(value: float | None, base: float | None) -> float | None:
    """`value` in units of `base`; None if one of them is unknown or the base is zero."""
    if value is None or not base:
        return None
    return value / base


HIGHER_IS_BETTER = {"ops"}
"""Names of Sample's fields; of all others less is better."""


def best(metric: str, values: Iterable[float]) -> float | None:
    """The best of several values of one of Sample's fields; None if there are none."""
    choose = max if metric in HIGHER_IS_BETTER else min
    return choose(values, default=None)


@dataclass
class Results:
    """All samples of one run."""

    placements: list[str]
    loads: list[Load]
    rows: list[Row]
    samples: dict[tuple[str, str, str], list[Sample]] = field(default_factory=dict)
    """By placement, load and subject."""
    idle: dict[str, list[IdleSample]] = field(default_factory=dict)
    """By subject."""
    failures: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def add(self, placement: str, load: str, subject: str, sample: Sample) -> None:
        """Keep one round's sample of a cell."""
        self.samples.setdefault((placement, load, subject), []).append(sample)

    def median(self, placement: str, load: str, subject: str) -> Sample | None:
        """The medians of one cell; None if it was not measured."""
        samples = self.samples.get((placement, load, subject))
        return median(samples) if samples else None

    def value(self, placement: str, load: str, subject: str, metric: str) -> float | None:
        """The median of one field of Sample; None if it was not measured."""
        sample = self.median(placement, load, subject)
        return None if sample is None else getattr(sample, metric)

    def best_peer(self, placement: str, load: str, metric: str) -> float | None:
        """The best median that any peer has; None if no peer was measured."""
        peers = (row.name for row in self.rows if row.kind is Kind.PEER)
        values = (self.value(placement, load, name, metric) for name in peers)
        return best(metric, [value for value in values if value is not None])

    def spread(self, placement: str, load: str, subject: str) -> float | None:
        """How far the rounds' ops/s lie apart, as a share of their median."""
        speeds = [sample.ops for sample in self.samples.get((placement, load, subject), ())]
        if not speeds:
            return None
        return ratio(max(speeds) - min(speeds), statistics.median(speeds))

    def typical_spread(self) -> float | None:
        """The median of all spreads; None if nothing was measured."""
        spreads = [spread for cell in self.samples if (spread := self.spread(*cell)) is not None]
        return statistics.median(spreads) if spreads else None

    def raw(self) -> dict[str, object]:
        """Every sample, as plain data for JSON."""
        return {
            "samples": [
                {"placement": p, "load": load, "subject": s, "rounds": [asdict(x) for x in rounds]}
                for (p, load, s), rounds in self.samples.items()
            ],
            "idle": [
                {"subject": s, "rounds": [asdict(x) for x in rounds]}
                for s, rounds in self.idle.items()
            ],
            "failures": self.failures,
        }
