"""Validation loss over the learning rate: how each method's rate was chosen, and how much depends on it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.metrics import LOWER
from utils.plots import NothingToDraw, PlotData, register
from utils.plots._style import (
    axis_label,
    draw_points,
    legend,
    legend_title,
    line_handle,
    log_ticks,
    method_style,
    new_axes,
    rank_marker,
    rank_shade,
    ranks_of,
    row_label,
    variant_dashes,
)
from utils.results.aggregate import RATE, Row, distinction
from utils.results.columns import LOSS_UNIT
from utils.results.methods import UNTRAINED
from utils.runs import finite
from utils.text import as_typed, cut

_CHOSEN: dict[str, Any] = {
    "marker": "*",
    "markersize": 9,
    "linestyle": "none",
    "color": "black",
    "markerfacecolor": "#F0E442",
}
_AT_END = _CHOSEN | {"markerfacecolor": "white"}  # of the rates, so that the lowest loss may be beyond it


@register("lr_curves", "validation loss over the learning rate by method and rank, the chosen rate marked")
def draw(data: PlotData) -> Figure:
    """One line per method, rank and other settings. Where there are trials of searches, only these are shown.

    The star of a line with trials is the rate that was then trained with other seeds, of several the one with the
    lowest loss; otherwise it is the lowest point. It is white if it is the lowest or highest rate. A note names methods
    that are left out because they have no trials.
    """
    key = f"val_{data.loss}"
    lines = _lines(data.trials or data.rows, key)
    if not lines:
        raise NothingToDraw(f"needs finished runs of {data.model} that differ in {RATE} only, as a search makes them")
    shown = [row for line in lines for row in line]
    names = {line[0].name for line in lines}
    if data.trials and (without := {line[0].name for line in _lines(data.rows, key)} - names):
        data.note(
            f"{data.model}: lr_curves shows trials of searches only, and there are none of {', '.join(sorted(without))}"
        )
    if alone := ", ".join(sorted({row.name for row in data.trials} - names)):
        data.note(f"{data.model}: lr_curves shows no line of {alone}, whose trials finished at one rate only")
    ranks, results = ranks_of(shown), {row.first.group for row in data.rows}
    figure, (axes,) = new_axes(2.7)
    stars: dict[str, Line2D] = {}
    handles, methods = [], list(dict.fromkeys(row.first.method for row in shown))
    for line in lines:
        first = line[0].first
        colour, dashes, marker = method_style(methods, first.method)
        same = [other for other in lines if other[0].name == line[0].name]
        dashes = variant_dashes(dashes, same.index(line))
        if first.rank is not None:
            colour, marker = rank_shade(colour, ranks, first.rank), rank_marker(ranks, first.rank)
        points = {_rate(row): row.statistics[key] for row in line}
        text = cut(_text(line[0], [other[0] for other in same], ranks), 40)
        handles.append(
            draw_points(axes, list(points), list(points.values()), text, color=colour, linestyle=dashes, marker=marker)
        )
        chosen = [row for row in line if not data.trials or row.first.group in results]
        if not chosen:
            continue
        best = min(chosen, key=lambda row: row.statistics[key].mean)
        name, star = "chosen" if data.trials else "lowest", _CHOSEN
        if best in (line[0], line[-1]):
            name, star = f"{name}, at the end of the rates", _AT_END
        axes.plot(_rate(best), best.statistics[key].mean, zorder=5, **star)
        stars[name] = line_handle(name, **star)
    axes.set_xscale("log")
    log_ticks(axes.xaxis)
    axes.set_xlabel("learning rate")
    axes.set_ylabel(axis_label("validation loss", LOSS_UNIT, LOWER))
    handles += stars.values()
    seeds = [row.statistics[key].n for row in shown]
    legend(figure, [[handle] for handle in handles], legend_title(ranks, "error bars", seeds))
    return figure


def _lines(rows: list[Row], key: str) -> list[list[Row]]:
    """The rows with a value of ``key`` that differ in the rate only, by rate: at least two."""
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if _rate(row) > 0 and key in row.statistics and row.first.method != UNTRAINED:
            rest = {name: as_typed(value) for name, value in row.settings.items() if name != RATE}
            lines[f"{row.first.method} {as_typed(row.first.rank)} {row.first.bias} {sorted(rest.items())}"].append(row)
    return [sorted(line, key=_rate) for line in lines.values() if len(line) > 1]


def _rate(row: Row) -> float:
    return finite(row.settings.get(RATE)) or 0.0


def _text(first: Row, same: list[Row], ranks: list[int | float]) -> str:
    """Method, rank, and the settings by which a line differs from others of the same method and rank."""
    differs = {name.rpartition(".")[2]: value for name, value in distinction(first, same).items() if name != RATE}
    words = [("" if name == "sample_method" else f"{name} ") + as_typed(value) for name, value in differs.items()]
    return " ".join([row_label(ranks, first), *words])
