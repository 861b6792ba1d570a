"""Peak memory and training time by method and rank on one kind of hardware, with the time of resampling."""

from __future__ import annotations

from collections import Counter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from utils.plots import NothingToDraw, PlotData, register
from utils.plots._style import blend, legend, legend_title, method_style, new_axes, ranks_of, row_label
from utils.results.aggregate import Row

_MEMORY, _TIME, _RESAMPLE = "peak_memory_mib", "train_seconds", "resample_seconds"
_VISIBLE = 0.005  # smallest visible share of a bar
_HATCHED: dict[str, Any] = {"facecolor": "white", "edgecolor": "#333333", "hatch": "//////", "linewidth": 0.5}


@register("cost", "peak memory and training time by method and rank")
def draw(data: PlotData) -> Figure:
    """Two panels of horizontal bars with one standard deviation over seeds."""
    rows = [row for row in data.trained() if row.statistics.keys() & {_MEMORY, _TIME}]
    if not rows:
        raise NothingToDraw(f"no finished run of {data.model} has recorded its time or memory")
    usual = Counter(row.hardware for row in rows).most_common(1)[0][0]
    if others := {row.hardware for row in rows} - {usual}:
        data.note(f"{data.model}: cost shows the runs on {usual} only, not those on {'; '.join(sorted(others))}")
        rows = [row for row in rows if row.hardware == usual]
    figure, axes = new_axes(1.3 + 0.19 * len(rows), columns=2, sharey=True)
    ranks = ranks_of(rows)
    unit, divisor = _time_unit(max((row.statistics[_TIME].mean for row in rows if _TIME in row.statistics), default=0))
    panels = ((_MEMORY, "peak memory", "MiB", 1.0), (_TIME, "training time", unit, divisor))
    for axis, (key, text, panel_unit, scale) in zip(axes, panels, strict=True):
        ends = [_draw_bar(axis, y, row, key, scale, data.methods) for y, row in enumerate(rows)]
        axis.set_xlim(0, 1.45 * max(ends) or 1)  # room for the numbers
        axis.set_xlabel(f"{text}\n({panel_unit})")
        axis.grid(axis="y", visible=False)
    figure.supxlabel("lower is better", fontsize=7)
    axes[0].set_yticks(range(len(rows)), [row_label(ranks, row, 16) for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    handles = [[Patch(label="resampling", **_HATCHED)]] if any(map(_resampling, rows)) else []
    seeds = [row.statistics[key].n for row in rows for key in (_MEMORY, _TIME) if key in row.statistics]
    legend(figure, handles, legend_title(ranks, "error bars", seeds))
    return figure


def _draw_bar(axis: Axes, y: int, row: Row, key: str, scale: float, methods: list[str]) -> float:
    """Draw a bar with its deviation and value, and return its end.

    The hatched end of a bar of training is the time of resampling.
    """
    statistic = row.statistics.get(key)
    if statistic is None:
        axis.text(0, y, " not recorded", va="center", fontsize=6)
        return 0.0
    colour = method_style(methods, row.first.method)[0]
    whole, deviation = statistic.mean / scale, (statistic.std or 0.0) / scale
    resampling = _resampling(row) / scale if key == _TIME else 0.0
    length = whole - resampling
    axis.barh(y, length, height=0.7, color=blend(colour, 0.55), edgecolor=colour, linewidth=0.8)
    if resampling:
        axis.barh(y, resampling, left=length, height=0.7, zorder=0.9, **_HATCHED)
    if statistic.std is not None:
        axis.errorbar(whole, y, xerr=deviation, fmt="none", ecolor="black", elinewidth=0.9, capsize=2.5)
    end = whole + deviation
    text = (f"{length:,.0f}" if length >= 1000 else f"{length:#.3g}".rstrip(".")) + (
        f" + {resampling:.2g}" if resampling else ""
    )
    axis.annotate(text, (end, y), (3, 0), textcoords="offset points", va="center", fontsize=6)
    return end


def _resampling(row: Row) -> float:
    """Seconds of resampling, 0 if they are not visible in the training time."""
    training, resampling = row.statistics.get(_TIME), row.statistics.get(_RESAMPLE)
    return resampling.mean if training and resampling and resampling.mean > _VISIBLE * training.mean else 0.0


def _time_unit(seconds: float) -> tuple[str, float]:
    return ("h", 3600.0) if seconds >= 7200 else ("min", 60.0) if seconds >= 120 else ("s", 1.0)
