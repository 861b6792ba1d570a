"""Curves over epochs: method by line style, rank by colour, seeds as a band of one standard deviation."""

from __future__ import annotations

from matplotlib.figure import Figure

from utils.plots._data import Curve, NothingToDraw, PlotData
from utils.plots._style import (
    BAND,
    label,
    legend,
    line_handle,
    look,
    new_axes,
    plain_log,
    rank_colour,
    ranks_of,
    seeds_title,
    whole_epochs,
)
from utils.tables.aggregate import Row
from utils.tables.results import shown

_FEW = 12  # points that get markers
_LOG_FROM = 8  # a range of values this wide (largest over smallest) is drawn on a logarithmic axis


def draw_curves(data: PlotData, split: str, key: str, ylabel: str, bins: int | None = None) -> Figure:
    """``key`` of the logging points of ``split`` against epochs, a line for each method and rank.

    Raises NothingToDraw when no finished run has such points.
    """
    rows = data.trained()
    drawn: list[tuple[Row, Curve]] = [(row, c) for row in rows if (c := data.curve(row, split, key, bins))]
    if not drawn:
        raise NothingToDraw(f"no finished run of {data.model} has {split} points with {key!r} in its metrics.jsonl")
    figure, (axes,) = new_axes(2.9)
    methods = list(dict.fromkeys(row.first.method for row, _ in drawn))
    ranks = ranks_of([row for row, _ in drawn])
    for row, curve in drawn:
        colour = rank_colour(ranks, row.first.rank)
        _, dashes, marker = look(methods, row.first.method)
        axes.plot(
            curve.x,
            curve.mean,
            color=colour,
            linestyle=dashes,
            marker=marker if len(curve.x) <= _FEW else None,
            markersize=3,
            label=" ".join([label(row.first.method), *([] if row.first.rank is None else [shown(row.first.rank)])]),
        )
        if curve.std:
            low = [mean - std for mean, std in zip(curve.mean, curve.std, strict=True)]
            high = [mean + std for mean, std in zip(curve.mean, curve.std, strict=True)]
            axes.fill_between(curve.x, low, high, color=colour, alpha=BAND, linewidth=0)
    values = [value for _, curve in drawn for value in curve.mean]
    if min(values) > 0 and max(values) / min(values) > _LOG_FROM:
        axes.set_yscale("log")
        plain_log(axes.yaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    whole_epochs(axes, [x for _, curve in drawn for x in curve.x])
    few = all(len(curve.x) <= _FEW for _, curve in drawn)
    styles = []
    for method in methods:
        _, dashes, marker = look(methods, method)
        mark = marker if few else None
        styles.append(line_handle(label(method), color="#333333", linestyle=dashes, marker=mark, markersize=3))
    band = seeds_title([row for row, curve in drawn if curve.std], "band")
    legend(figure, styles, "upper", band, handle=3.4)
    shades = [line_handle(shown(rank), color=rank_colour(ranks, rank), linewidth=3) for rank in ranks]
    legend(figure, shades, "lower", "rank", handle=1.2)
    return figure
