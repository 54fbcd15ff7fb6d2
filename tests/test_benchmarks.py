"""Tests what the benchmarks compute; nothing here starts a program or puts load on the machine."""

import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest

# At the end: in front it would hide the installed, compiled resproxy behind the sources.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import report, targets
from benchmarks.loads import LOADS, Speed, parse_csv
from benchmarks.measure import Counts, placements
from benchmarks.processes import cpu_ns
from benchmarks.results import IdleSample, Kind, Results, Row, Sample, median, ratio
from benchmarks.server import Tcp, Unix, encode
from benchmarks.targets import EVERY_PEER, TARGETS, Target, judge, judge_idle

CSV = """\
ERROR: failed to fetch CONFIG from 127.0.0.1:6379
WARNING: Could not fetch server CONFIG
"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms",\
"max_latency_ms"
"GET","45454.55","0.650","0.168","0.527","1.271","1.871","2.047"
"""

ROWS = [
    Row("direct-tcp", "direct", Kind.DIRECT, unix=False),
    Row("resproxy-tcp", "resproxy", Kind.RESPROXY, unix=False),
    Row("resproxy-unix", "resproxy", Kind.RESPROXY, unix=True),
    Row("twemproxy", "twemproxy", Kind.PEER, unix=False),
    Row("envoy", "envoy", Kind.PEER, unix=False),
]

SAMPLE = Sample(
    ops=1000, p50=1.0, p99=2.0, proxy_cpu=20.0, server_cpu=10.0, connections=4, rss=1 << 20
)

SETTING = report.Setting(
    when="today",
    machine="a machine",
    versions={"Redis": "7.0.15"},
    missing={"haproxy": "apt-get install haproxy"},
    rounds=5,
    seconds=1.5,
    placements=placements(0, 1),
    plot=None,
)


def results(**samples: Sample) -> Results:
    """Results of placement A, load get, by subject with `_` for `-`."""
    made = Results(["A"], [LOADS[0]], ROWS)
    for name, sample in samples.items():
        made.add("A", "get", name.replace("_", "-"), sample)
    return made


def with_ops(ops: float) -> Sample:
    return dataclasses.replace(SAMPLE, ops=ops)


def with_cpu(cpu: float | None) -> Sample:
    return dataclasses.replace(SAMPLE, proxy_cpu=cpu)


def test_csv_is_read_among_warnings() -> None:
    assert parse_csv(CSV) == Speed(ops=45454.55, p50=0.527, p99=1.871)


@pytest.mark.parametrize("output", ["", CSV.rpartition('"GET"')[0], CSV.replace('"rps"', '"r"')])
def test_incomplete_csv_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match="redis-benchmark"):
        parse_csv(output)


def test_two_results_are_refused() -> None:
    with pytest.raises(ValueError, match="found 2"):
        parse_csv(CSV + CSV.splitlines()[-1])


def test_load_command_addresses_both_transports() -> None:
    tool = Path("redis-benchmark")
    assert LOADS[0].command(tool, Tcp(1234), 10)[3:5] == ["-p", "1234"]
    assert LOADS[0].command(tool, Unix(Path("r.sock")), 10)[1:3] == ["-s", "r.sock"]


def test_only_churn_reconnects() -> None:
    tool = Path("redis-benchmark")
    commands = {load.name: load.command(tool, Tcp(1), 10) for load in LOADS}
    reconnecting = [name for name, words in commands.items() if words[words.index("-k") + 1] == "0"]
    assert reconnecting == ["churn"]


def test_command_is_encoded_as_resp() -> None:
    assert encode(b"GET", b"k") == b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"


def test_faults_are_lost_failed_and_missed_requests() -> None:
    before = Counts(calls=100, errors=1, misses=10)
    assert Counts(calls=150, errors=1, misses=10).faults_since(before, 50) == 0
    assert Counts(calls=145, errors=1, misses=10).faults_since(before, 50) == 5
    assert Counts(calls=150, errors=4, misses=14).faults_since(before, 50) == 7


def test_cpu_time_of_this_process_is_that_of_the_operating_system() -> None:
    before = os.times()
    measured = cpu_ns(os.getpid()) / 1e9
    after = os.times()
    tick = 2 / os.sysconf("SC_CLK_TCK")
    assert before.user + before.system - tick <= measured <= after.user + after.system + tick


def test_placements_move_the_load_only() -> None:
    places = placements(server_core=0, proxy_core=1)
    assert dataclasses.astuple(places["A"])[2:] == (0, 1, 0)
    assert dataclasses.astuple(places["B"])[2:] == (0, 1, 1)


def test_median_goes_field_by_field_and_skips_what_is_unknown() -> None:
    samples = [
        dataclasses.replace(SAMPLE, ops=1, p50=9, connections=None),
        dataclasses.replace(SAMPLE, ops=2, p50=8, connections=4),
        dataclasses.replace(SAMPLE, ops=9, p50=1, connections=6),
    ]
    middle = median(samples)
    assert (middle.ops, middle.p50, middle.connections) == (2, 8, 5)
    assert median([with_cpu(None)]).proxy_cpu is None


@pytest.mark.parametrize(
    ("value", "base", "expected"), [(3, 2, 1.5), (None, 2, None), (3, None, None), (3, 0, None)]
)
def test_ratio(value: float | None, base: float | None, expected: float | None) -> None:
    assert expected == ratio(value, base)


def test_best_peer_is_the_fastest_or_the_cheapest() -> None:
    fast = dataclasses.replace(SAMPLE, ops=2000, proxy_cpu=30)
    slow = dataclasses.replace(SAMPLE, ops=1500, proxy_cpu=25)
    measured = results(direct_tcp=with_ops(9000), twemproxy=fast, envoy=slow)
    assert measured.best_peer("A", "get", "ops") == 2000
    assert measured.best_peer("A", "get", "proxy_cpu") == 25
    assert results().best_peer("A", "get", "ops") is None


def test_spread_is_relative_to_the_median() -> None:
    measured = results()
    for ops in (90, 100, 120):
        measured.add("A", "get", "envoy", with_ops(ops))
    assert measured.spread("A", "get", "envoy") == 0.3
    assert measured.spread("A", "get", "twemproxy") is None


AT_LEAST = Target("A", "get", False, "ops", 1.5, "direct-tcp")
AT_MOST = Target("A", "get", False, "proxy_cpu", 0.5, "twemproxy")
ABOVE_ALL = Target("A", "get", False, "ops", 1.0, EVERY_PEER)


@pytest.mark.parametrize(
    ("target", "samples", "met"),
    [
        (AT_LEAST, {"resproxy_tcp": with_ops(150), "direct_tcp": with_ops(100)}, True),
        (AT_LEAST, {"resproxy_tcp": with_ops(149), "direct_tcp": with_ops(100)}, False),
        (AT_LEAST, {"resproxy_tcp": with_ops(149)}, None),
        (AT_LEAST, {"direct_tcp": with_ops(149)}, None),
        (AT_MOST, {"resproxy_tcp": with_cpu(10), "twemproxy": with_cpu(20)}, True),
        (AT_MOST, {"resproxy_tcp": with_cpu(11), "twemproxy": with_cpu(20)}, False),
        (
            ABOVE_ALL,
            {
                "resproxy_tcp": with_ops(20),
                "twemproxy": with_ops(21),
                "envoy": with_ops(5),
                "direct_tcp": with_ops(99),
            },
            False,
        ),
        (ABOVE_ALL, {"resproxy_tcp": with_ops(20), "envoy": with_ops(5)}, True),
    ],
)
def test_verdict(
    monkeypatch: pytest.MonkeyPatch, target: Target, samples: dict[str, Sample], met: bool | None
) -> None:
    monkeypatch.setattr(targets, "TARGETS", (target,))
    (verdict,) = judge(results(**samples))
    assert met is verdict.met
    assert verdict.subject == "resproxy-tcp"


def test_every_build_is_judged() -> None:
    rows = [Row(f"{label}-tcp", label, Kind.RESPROXY, unix=False) for label in ("old", "new")]
    judged = {verdict.subject for verdict in judge(Results(["A"], [LOADS[0]], rows))}
    assert {"old-tcp", "new-tcp"} == judged


def test_targets_of_other_placements_and_loads_are_left_out() -> None:
    judged = {(v.target.placement, v.target.load) for v in judge(results())}
    assert {("A", "get")} == judged


def test_targets_refer_to_loads_and_fields_that_exist() -> None:
    assert {target.load for target in TARGETS} <= {load.name for load in LOADS}
    assert {t.metric for t in TARGETS} <= {field.name for field in dataclasses.fields(Sample)}


@pytest.mark.parametrize(("size", "met"), [(4096, True), (4097, False)])
def test_idle_verdict(size: int, met: bool) -> None:
    measured = results()
    measured.idle["resproxy-tcp"] = [IdleSample(100, size, 9000, 4)]
    measured.idle["envoy"] = [IdleSample(100, 8000, 0, 1)]
    (verdict,) = judge_idle(measured)
    assert ("resproxy-tcp", met) == (verdict.subject, verdict.met)


def test_report_shows_medians_ratios_verdicts_and_what_is_missing() -> None:
    faulty = dataclasses.replace(SAMPLE, ops=1500, proxy_cpu=10.0, faults=3)
    measured = results(direct_tcp=with_cpu(None), resproxy_tcp=faulty, twemproxy=with_ops(500))
    measured.failures.append("A get envoy: ended with status 1")
    text = report.markdown(measured, SETTING)
    cells = re.findall(r"^\| resproxy-tcp +\|(.*)\|$", text, re.MULTILINE)[0].split("|")
    ops, to_direct, to_peer = (cell.strip() for cell in cells[:3])
    assert (ops, to_direct, to_peer) == ("1,500", "1.50", "3.00")
    assert "Missing here: haproxy; install it with `apt-get install haproxy`." in text
    assert "resproxy-tcp: 3 requests were lost" in text
    assert re.search(r"A, get: ops/s at least 1 x direct-tcp +\| +resproxy-tcp \|.* met \|", text)
    assert re.search(r"at most 0.75 x envoy +\| +resproxy-tcp \|.* not measured \|", text)
    assert "- A get envoy: ended with status 1" in text


@pytest.mark.parametrize(("slowest", "noisy"), [(86, False), (84, True)])
def test_report_warns_of_a_machine_that_is_not_quiet(slowest: float, noisy: bool) -> None:
    measured = results(direct_tcp=with_ops(100))
    measured.add("A", "get", "direct-tcp", with_ops(100))
    measured.add("A", "get", "direct-tcp", with_ops(slowest))
    assert ("not quiet" in report.markdown(measured, SETTING)) is noisy


def test_table_columns_are_aligned() -> None:
    lines = report.table(("name", "n"), [("a", "1"), ("longer", "1,000")]).splitlines()
    assert lines[:3] == ["| name   |     n |", "| ------ | ----: |", "| a      |     1 |"]
    assert len({len(line) for line in lines}) == 1
