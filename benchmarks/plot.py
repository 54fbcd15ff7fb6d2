"""Owns the plot: throughput against a direct connection, and where the CPU time goes."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import DIRECT, Kind, Results, Row, ratio

mpl.use("Agg")

INK = "#24292f"
FAINT = "#d0d7de"
SERVER = "#e3e6ea"
RESPROXY_COLOURS = ("#c2410c", "#0f766e", "#7c3aed", "#a16207")
"""One for each build."""
COLOURS = {Kind.DIRECT: "#8c959f", Kind.PEER: "#5b7fa6"}


def draw(results: Results, path: Path) -> None:
    """Write a PNG: a row for each load; for each placement throughput, then CPU per request."""
    columns = 2 * len(results.placements)
    height = 1.0 + len(results.loads) * (0.55 + 0.2 * len(results.rows))
    figure = Figure(figsize=(1.2 + 3.6 * columns, height), layout="constrained")
    grid = figure.subplots(len(results.loads), columns, squeeze=False)
    for cells, load in zip(grid, results.loads, strict=True):
        for number, placement in enumerate(results.placements):
            _throughput(cells[2 * number], results, placement, load.name)
            _cpu(cells[2 * number + 1], results, placement, load.name)
        for axes in cells[1:]:
            axes.set_yticklabels([])
        cells[0].set_title(load.title, loc="left", fontsize=10, fontweight="bold", color=INK)
    for number, placement in enumerate(results.placements):
        _headline(grid[0][2 * number], f"Placement {placement}: ops/s, direct TCP = 1")
        _headline(grid[0][2 * number + 1], "CPU µs per request, proxy + Redis (grey)")
        _share_scale([cells[2 * number] for cells in grid])
    figure.savefig(path, dpi=110, facecolor="white")


def _headline(axes: Axes, text: str) -> None:
    axes.annotate(text, (0, 1), (0, 26), "axes fraction", "offset points", fontsize=10, color=INK)


def _share_scale(column: list[Axes]) -> None:
    """Ratios can be compared down the column; CPU times differ too much between loads for that."""
    end = max(axes.get_xlim()[1] for axes in column)
    for axes in column:
        axes.set_xlim(0, end)


def _colour(results: Results, row: Row) -> str:
    if row.kind is not Kind.RESPROXY:
        return COLOURS[row.kind]
    builds = list(dict.fromkeys(r.program for r in results.rows if r.kind is Kind.RESPROXY))
    return RESPROXY_COLOURS[builds.index(row.program) % len(RESPROXY_COLOURS)]


def _throughput(axes: Axes, results: Results, placement: str, load: str) -> None:
    _frame(axes, results)
    direct = results.value(placement, load, DIRECT, "ops")
    for place, row in enumerate(results.rows):
        ops = results.value(placement, load, row.name, "ops")
        share = ratio(ops, direct)
        if share is not None:
            axes.barh(place, share, color=_colour(results, row), height=0.72)
            _label(axes, share, place, f"{share:.2f}")
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))


def _cpu(axes: Axes, results: Results, placement: str, load: str) -> None:
    _frame(axes, results)
    for place, row in enumerate(results.rows):
        sample = results.median(placement, load, row.name)
        if sample is not None:
            proxy = sample.proxy_cpu or 0
            axes.barh(place, proxy, color=_colour(results, row), height=0.72)
            axes.barh(place, sample.server_cpu, left=proxy, color=SERVER, height=0.72)
            text = f"{sample.server_cpu:.1f}"
            if sample.proxy_cpu is not None:
                text = f"{proxy:.1f} + {text}"
            _label(axes, proxy + sample.server_cpu, place, text)


def _frame(axes: Axes, results: Results) -> None:
    axes.set_yticks(range(len(results.rows)), [row.name for row in results.rows], fontsize=8)
    axes.set_ylim(len(results.rows) - 0.4, -0.6)
    axes.margins(x=0.25)
    axes.tick_params(length=0, labelsize=8, labelcolor=INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _label(axes: Axes, x: float, place: int, text: str) -> None:
    axes.annotate(
        text,
        (x, place),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=INK,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )
