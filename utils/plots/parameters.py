"""The final metric against the number of trainable parameters."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.plots import NothingToDraw, PlotData, register
from utils.plots._style import (
    BAND,
    axis_label,
    count_ticks,
    draw_points,
    label,
    legend,
    legend_title,
    line_handle,
    method_style,
    new_axes,
    ranks_of,
)
from utils.results.aggregate import Row
from utils.results.methods import FULL_TRAINING


@register("parameters", "final metric against trainable parameters")
def draw(data: PlotData) -> Figure:
    """One point per method and rank with one standard deviation over seeds; full training is a horizontal line."""
    key = data.metric.key
    rows = data.having_metric(data.trained())
    full = [row for row in rows if row.first.method in FULL_TRAINING]
    adapters = [row for row in rows if row.first.method not in FULL_TRAINING and row.parameters]
    if not adapters:
        raise NothingToDraw(f"no finished adapter run of {data.model} has {key} and a parameter count")
    counts = [row.parameters or 1 for row in adapters]
    if not data.asked and max(counts) < 1.1 * min(counts):
        raise NothingToDraw(f"all adapters of {data.model} train about as many parameters")
    figure, (axes,) = new_axes(2.6)
    methods = list(dict.fromkeys(row.first.method for row in adapters))
    handles = []
    for method in methods:
        own = sorted((row for row in adapters if row.first.method == method), key=lambda row: row.parameters or 0)
        colour, dashes, marker = method_style(data.methods, method)
        x = [row.parameters or 1 for row in own]
        statistics = [row.statistics[key] for row in own]
        text = label(method)
        handles.append(draw_points(axes, x, statistics, text, color=colour, linestyle=dashes, marker=marker))
    handles = [_full_line(axes, row, key) for row in full] + handles
    axes.set_xscale("log")
    axes.set_xlim(min(counts) / 1.4, max(counts) * 1.4)
    count_ticks(axes.xaxis, counts)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(axis_label(data.metric.header, data.metric.unit, data.metric.better))
    ranks = ranks_of(adapters)
    seeds = [row.statistics[key].n for row in rows]
    what = "error bars, band" if any(row.statistics[key].std for row in full) else "error bars"
    legend(figure, [[handle] for handle in handles], legend_title(ranks if len(ranks) == 1 else [], what, seeds))
    return figure


def _full_line(axes: Axes, full: Row, key: str) -> Line2D:
    statistic = full.statistics[key]
    colour, dashes, _ = method_style([], full.first.method)
    text = label(full.first.method)
    axes.axhline(statistic.mean, color=colour, linestyle=dashes, linewidth=1.0, label=text)
    if statistic.std:
        axes.axhspan(
            statistic.mean - statistic.std, statistic.mean + statistic.std, color=colour, alpha=BAND, linewidth=0
        )
    return line_handle(text, color=colour, linestyle=dashes, linewidth=1.0)
