"""Curves over epochs: one colour and line style per method, one shade and marker per rank, a band over seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.plots._data import Curve, NothingToDraw, PlotData
from utils.plots._style import (
    BAND,
    arrange,
    epoch_axis,
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
)
from utils.results.aggregate import Row
from utils.results.methods import method_label
from utils.text import human

_ALL_MARKERS = 12  # a curve of up to this many points has a marker at each point
_LOG_FROM = 8  # largest / smallest value from which the axis is logarithmic
_EARLY = 0.15  # the first share of the run, whose values may lie above the axis


def draw_curves(data: PlotData, split: str, key: str, ylabel: str, bins: int | None = None) -> Figure:
    """``key`` of the logging points of ``split`` against epochs, one line per method and rank.

    The axis shows the range in which methods differ. The value before training is therefore not drawn but written below
    the axis, and the first values may lie above the axis.

    Args:
        bins: see ``PlotData.curve``. The axis then begins at epoch 0, like the first bin.

    Raises NothingToDraw if no finished run has such points.
    """
    row_curves = []
    for row in data.trained():
        if curve := data.curve(row, split, key, bins):
            row_curves.append((row, curve))
        else:
            data.note(f"{data.model}: {method_label(row.first.method)} has no {split} points that its seeds share")
    if not row_curves:
        raise NothingToDraw(f"no finished run of {data.model} has {split} points with {key!r} in its metrics.jsonl")
    ranks = ranks_of(row for row, _ in row_curves)
    drawn = [(row, _without_start(curve), _line_style(data.methods, ranks, row)) for row, curve in row_curves]
    groups: dict[str, list[Any]] = {}
    for row, curve, line_style in drawn:
        fewer = f", {curve.seeds} of {len(row.results)} seeds" if curve.seeds < len(row.results) else ""
        groups.setdefault(row.first.method, []).append(line_handle(row_label(ranks, row, 16) + fewer, **line_style))
    handles, columns = arrange(list(groups.values()))
    figure, (axes,) = new_axes(2.5 + 0.15 * math.ceil(len(handles) / columns))
    for row, curve, line_style in drawn:
        every = 1 if len(curve.x) <= _ALL_MARKERS else len(curve.x) // 8
        axes.plot(curve.x, curve.mean, label=row_label(ranks, row), markevery=every, **line_style)
        if curve.std:
            axes.fill_between(curve.x, *_band(curve), color=line_style["color"], alpha=BAND, linewidth=0)
    curves = [curve for _, curve, _ in drawn]
    notes = [_start_note(row_curves), _focus(axes, curves)]
    axes.set_xlabel("\n".join(["epoch", *filter(None, notes)]))
    axes.set_ylabel(ylabel)
    first = 0.0 if bins else min(curve.x[0] for curve in curves)
    epoch_axis(axes, first, max(curve.x[-1] for curve in curves))
    seeds = [curve.seeds for _, curve, _ in drawn if curve.std]
    legend(figure, list(groups.values()), legend_title(ranks, "band", seeds))
    return figure


def _line_style(methods: list[str], ranks: list[int | float], row: Row) -> dict[str, Any]:
    colour, dashes, marker = method_style(methods, row.first.method)
    if row.first.rank is not None and len(ranks) > 1:
        colour, marker = rank_shade(colour, ranks, row.first.rank), rank_marker(ranks, row.first.rank)
    return {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3.2}


def _without_start(curve: Curve) -> Curve:
    """``curve`` without the point before training, unless it is the only one."""
    if curve.x[0] > 0 or len(curve.x) == 1:
        return curve
    return replace(curve, x=curve.x[1:], mean=curve.mean[1:], std=curve.std and curve.std[1:])


def _start_note(row_curves: list[tuple[Row, Curve]]) -> str:
    """A note of the values before training, which are not drawn."""
    values = [curve.mean[0] for _, curve in row_curves if curve.x[0] == 0 and len(curve.x) > 1]
    texts = list(dict.fromkeys(human(value) for value in sorted(values)))
    return f"not shown: {'–'.join([texts[0], *texts[1:][-1:]])} before training (epoch 0)" if texts else ""


def _band(curve: Curve) -> tuple[list[float], list[float]]:
    deviations = curve.std or [0.0] * len(curve.x)
    pairs = list(zip(curve.mean, deviations, strict=True))
    return [mean - std for mean, std in pairs], [mean + std for mean, std in pairs]


def _focus(axes: Axes, curves: list[Curve]) -> str:
    """Limit the axis to the values after the first epochs. Returns a note if earlier values lie above it."""
    end = max(curve.x[-1] for curve in curves)
    bands = [(x, *pair) for curve in curves for x, *pair in zip(curve.x, *_band(curve), strict=True)]
    late = [(low, high) for x, low, high in bands if x >= _EARLY * end]
    bottom, top = min(low for low, _ in late), max(high for _, high in late)
    if bottom > 0 and top / bottom > _LOG_FROM:
        axes.set_yscale("log")
        log_ticks(axes.yaxis)
        return ""
    highest = max(value for curve in curves for value in curve.mean)
    if top == bottom or highest <= top + (top - bottom):
        return ""
    margin = 0.05 * (top - bottom)
    axes.set_ylim(min(bottom, *(low for _, low, _ in bands)) - margin, top + margin)
    return f"the first values, up to {human(highest)}, lie above the axis"
