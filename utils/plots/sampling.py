"""ROSA's sample methods (random, bottom, ...) compared by rank, with all other settings equal but searched rates."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from matplotlib.figure import Figure

from utils.plots import NothingToDraw, PlotData, register
from utils.plots._data import SAMPLE_METHOD
from utils.plots._style import (
    axis_label,
    blend,
    draw_points,
    legend,
    legend_title,
    method_style,
    new_axes,
    rank_name,
    rank_text,
    ranks_of,
)
from utils.results.aggregate import RATE, Row
from utils.text import as_typed

# Shade of ROSA's colour, line style and marker of each sample method. The first is that of random.
_STYLES: list[tuple[float, Any, str]] = [
    (0.0, "-", "o"),
    (0.4, (0, (4, 1.5)), "s"),
    (-0.5, (0, (1, 1.2)), "^"),
    (0.2, (0, (6, 1.5, 1, 1.5)), "D"),
    (-0.25, (0, (8, 2)), "v"),
]


@register("sampling", "final metric of ROSA's sample methods (random, bottom, ...) by rank")
def draw(data: PlotData) -> Figure:
    """One line per sample method over the ranks, from rows that differ in rank and sample method only.

    Where a search chose the learning rates, each row has its own.
    """
    key = data.metric.key
    rows = [row for row in data.rows if row.first.method == "rosa" and SAMPLE_METHOD in row.settings]
    rows = data.having_metric(rows)
    families: dict[str, list[Row]] = defaultdict(list)
    searched = {row.first.group for row in data.trials}
    for row in rows:
        free = (SAMPLE_METHOD, RATE) if row.first.group in searched else (SAMPLE_METHOD,)
        rest = {name: as_typed(value) for name, value in row.settings.items() if name not in free}
        families[f"{sorted(rest.items())} {row.first.bias}"].append(row)
    family = max(families.values(), key=_comparisons, default=[])
    if not _comparisons(family):
        found = ", ".join(sorted({as_typed(row.settings[SAMPLE_METHOD]) for row in rows})) or "none"
        raise NothingToDraw(
            f"needs finished ROSA runs of {data.model} with {key} that differ in {SAMPLE_METHOD} only, "
            f"such as random and bottom; found: {found}"
        )
    if len(families) > 1:
        data.note(
            f"{data.model}: sampling shows the {len(family)} ROSA settings that differ in rank and sample method only"
        )
    figure, (axes,) = new_axes(2.6)
    ranks = ranks_of(family)
    positions = {as_typed(rank): i for i, rank in enumerate(ranks)}
    samples = sorted({as_typed(row.settings[SAMPLE_METHOD]) for row in family}, key=lambda s: (s != "random", s))
    colour, _, _ = method_style([], "rosa")
    handles = []
    for sample, (amount, dashes, marker) in zip(samples, itertools.cycle(_STYLES)):
        by_rank: dict[int, list[Row]] = defaultdict(list)
        for row in family:
            if as_typed(row.settings[SAMPLE_METHOD]) == sample:
                by_rank[positions[as_typed(row.first.rank)]].append(row)
        own = [data.preferred(same) for _, same in sorted(by_rank.items())]
        line_style = {"color": blend(colour, amount), "linestyle": dashes, "marker": marker}
        x = [positions[as_typed(row.first.rank)] for row in own]
        handles.append(draw_points(axes, x, [row.statistics[key] for row in own], sample, **line_style))
    axes.set_xticks(range(len(ranks)), [rank_text(ranks, rank) for rank in ranks])
    axes.set_xlim(-0.4, len(ranks) - 0.6)
    axes.set_xlabel(rank_name(ranks))
    axes.set_ylabel(axis_label(data.metric.header, data.metric.unit, data.metric.better))
    legend(
        figure,
        [[handle] for handle in handles],
        legend_title([], "error bars", [row.statistics[key].n for row in family]),
    )
    return figure


def _comparisons(rows: list[Row]) -> int:
    """The number of possible comparisons: sample methods beyond the first, summed over ranks."""
    by_rank: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_rank[as_typed(row.first.rank)].add(as_typed(row.settings[SAMPLE_METHOD]))
    return sum(len(samples) - 1 for samples in by_rank.values())
