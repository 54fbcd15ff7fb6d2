"""Owns the targets: what resproxy's medians should be, compared with those measured beside them."""

from dataclasses import dataclass

from benchmarks.results import DIRECT, HIGHER_IS_BETTER, Kind, Results, Row, median

EVERY_PEER = "every peer"
IDLE_BYTES = 4096
"""The most that an idle connection may cost, in bytes."""


@dataclass(frozen=True)
class Target:
    """One median of resproxy against a multiple of the same median of another subject."""

    placement: str
    load: str
    unix: bool
    metric: str
    """A field of Sample."""
    factor: float
    baseline: str
    """A subject, or EVERY_PEER."""

    @property
    def at_least(self) -> bool:
        """Whether the value must reach its bound, rather than stay below it."""
        return self.metric in HIGHER_IS_BETTER


TCP, UNIX = False, True

TARGETS = (
    Target("A", "get", TCP, "ops", 1.0, DIRECT),
    Target("A", "set", TCP, "ops", 1.0, DIRECT),
    Target("A", "get", UNIX, "ops", 1.4, DIRECT),
    Target("A", "set", UNIX, "ops", 1.4, DIRECT),
    Target("A", "get", TCP, "proxy_cpu", 0.85, "twemproxy"),
    Target("A", "set", TCP, "proxy_cpu", 0.85, "twemproxy"),
    Target("A", "get", TCP, "proxy_cpu", 0.75, "envoy"),
    Target("A", "set", TCP, "proxy_cpu", 0.75, "envoy"),
    Target("A", "pipeline", TCP, "ops", 1.1, DIRECT),
    Target("A", "pipeline", TCP, "proxy_cpu", 0.35, "twemproxy"),
    Target("A", "clients1000", TCP, "ops", 1.0, DIRECT),
    Target("A", "get16k", TCP, "proxy_cpu", 0.85, "twemproxy"),
    Target("A", "set16k", TCP, "proxy_cpu", 0.85, "twemproxy"),
    Target("A", "churn", UNIX, "ops", 1.2, DIRECT),
    Target("A", "churn", TCP, "proxy_cpu", 1.0, "twemproxy"),
    Target("B", "get", TCP, "server_cpu", 0.3, DIRECT),
    Target("B", "set", TCP, "server_cpu", 0.3, DIRECT),
    Target("B", "clients1000", TCP, "server_cpu", 0.3, DIRECT),
    Target("B", "get", TCP, "ops", 1.0, EVERY_PEER),
    Target("B", "set", TCP, "ops", 1.0, EVERY_PEER),
    Target("B", "clients1000", TCP, "ops", 1.0, EVERY_PEER),
    Target("B", "get", UNIX, "ops", 0.85, DIRECT),
    Target("B", "set", UNIX, "ops", 0.85, DIRECT),
    Target("B", "clients1000", UNIX, "ops", 0.85, DIRECT),
    Target("A", "client1", TCP, "p50", 1.0, EVERY_PEER),
    Target("B", "client1", TCP, "p50", 1.0, EVERY_PEER),
)


@dataclass(frozen=True)
class Verdict:
    """How one subject did against one target."""

    subject: str
    target: Target
    value: float | None
    bound: float | None
    """What `value` should reach or stay below."""
    met: bool | None
    """None if either side was not measured."""


@dataclass(frozen=True)
class IdleVerdict:
    """How many bytes an idle connection costs one subject, and whether that is within bounds."""

    subject: str
    value: float
    met: bool


def judge(results: Results) -> list[Verdict]:
    """A verdict for each resproxy build and each target whose placement and load were run."""
    loads = {load.name for load in results.loads}
    builds = [row for row in results.rows if row.kind is Kind.RESPROXY]
    return [
        _judge_one(results, row, target)
        for target in TARGETS
        for row in builds
        if row.unix == target.unix
        and target.placement in results.placements
        and target.load in loads
    ]


def _judge_one(results: Results, row: Row, target: Target) -> Verdict:
    where = (target.placement, target.load)
    value = results.value(*where, row.name, target.metric)
    if target.baseline == EVERY_PEER:
        baseline = results.best_peer(*where, target.metric)
    else:
        baseline = results.value(*where, target.baseline, target.metric)
    bound = None if baseline is None else baseline * target.factor
    met = None
    if value is not None and bound is not None:
        met = value >= bound if target.at_least else value <= bound
    return Verdict(row.name, target, value, bound, met)


def judge_idle(results: Results) -> list[IdleVerdict]:
    """A verdict for each resproxy subject that held idle connections."""
    verdicts = []
    for row in results.rows:
        samples = results.idle.get(row.name)
        if row.kind is Kind.RESPROXY and samples:
            value = median(samples).proxy_bytes
            if value is not None:
                verdicts.append(IdleVerdict(row.name, value, value <= IDLE_BYTES))
    return verdicts
