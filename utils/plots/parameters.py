"""The final metric against trainable parameters, with full fine-tuning as a line."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.plots import NothingToDraw, PlotData, register
from utils.plots._style import BAND, axis_label, label, legend, line_handle, look, new_axes, plain_log, seeds_title
from utils.tables.aggregate import Row


@register("parameters", "final metric against trainable parameters")
def draw(data: PlotData) -> Figure:
    """A point a rank with one standard deviation over seeds; full fine-tuning as a line across."""
    key = data.metric.key
    rows = [row for row in data.trained() if key in row.statistics]
    adapters = [row for row in rows if row.first.method != "none" and row.parameters]
    full = next((row for row in rows if row.first.method == "none"), None)
    if not adapters:
        raise NothingToDraw(f"no finished adapter run (rosa, lora) of {data.model} has {key} and a parameter count")
    figure, (axes,) = new_axes(2.6)
    methods = list(dict.fromkeys(row.first.method for row in adapters))
    handles = []
    for method in methods:
        mine = sorted((row for row in adapters if row.first.method == method), key=lambda row: row.parameters or 0)
        colour, dashes, marker = look(methods, method)
        look_of = {"color": colour, "linestyle": dashes, "marker": marker}
        axes.errorbar(
            [row.parameters for row in mine],
            [row.statistics[key].mean for row in mine],
            yerr=[row.statistics[key].std or 0.0 for row in mine],
            capsize=2,
            elinewidth=0.8,
            label=label(method),
            **look_of,
        )
        handles.append(line_handle(label(method), **look_of))
    if full is not None:
        handles.insert(0, _full_line(axes, full, key))
    axes.set_xscale("log")
    counts = [row.parameters or 1 for row in adapters]
    axes.set_xlim(min(counts) / 1.4, max(counts) * 1.4)
    plain_log(axes.xaxis)
    axes.set_xlabel("trainable parameters")
    axes.set_ylabel(axis_label(data.metric))
    legend(figure, handles, "upper", seeds_title(adapters, "bars", key))
    return figure


def _full_line(axes: Axes, full: Row, key: str) -> Line2D:
    statistic = full.statistics[key]
    colour, dashes, _ = look([], "none")
    text = label("none")
    axes.axhline(statistic.mean, color=colour, linestyle=dashes, linewidth=1.0, label=text)
    if statistic.std:
        axes.axhspan(
            statistic.mean - statistic.std, statistic.mean + statistic.std, color=colour, alpha=BAND, linewidth=0
        )
    return line_handle(text, color=colour, linestyle=dashes, linewidth=1.0)
