"""ROSA's choice of directions: random against bottom (and any other), at equal settings otherwise."""

from __future__ import annotations

from collections import defaultdict

from matplotlib.figure import Figure

from utils.plots import NothingToDraw, PlotData, register
from utils.plots._data import SAMPLE_METHOD
from utils.plots._style import axis_label, legend, line_handle, look, new_axes, ranks_of, seeds_title
from utils.tables.aggregate import Row
from utils.tables.results import shown

_STYLES = {"random": "rosa", "bottom": "lora", "top": "none"}  # borrowed looks: this figure has one method only


@register("sampling", "final metric of ROSA's sample methods (random, bottom, ...) by rank")
def draw(data: PlotData) -> Figure:
    """A line a sample method over the ranks; only rows that differ in nothing but the rank and the sample method."""
    key = data.metric.key
    rows = [row for row in data.rows if row.first.method == "rosa" and key in row.statistics]
    rows = [row for row in rows if SAMPLE_METHOD in row.settings]
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        rest = {name: shown(value) for name, value in row.settings.items() if name != SAMPLE_METHOD}
        families[f"{sorted(rest.items())} {row.first.bias}"].append(row)
    family = max(families.values(), key=_comparisons, default=[])
    if not _comparisons(family):
        have = ", ".join(sorted({shown(row.settings[SAMPLE_METHOD]) for row in rows})) or "none"
        raise NothingToDraw(
            f"needs finished ROSA runs of {data.model} with {key} that differ in {SAMPLE_METHOD} only, "
            f"such as random and bottom; there: {have}"
        )
    if len(families) > 1:
        data.note(
            f"{data.model}: sampling shows the {len(family)} ROSA settings that differ in rank and sample method only"
        )
    figure, (axes,) = new_axes(2.6)
    ranks = ranks_of(family)
    places = {shown(rank): place for place, rank in enumerate(ranks)}
    samples = sorted({shown(row.settings[SAMPLE_METHOD]) for row in family}, key=lambda s: (s != "random", s))
    handles = []
    for i, sample in enumerate(samples):
        mine = sorted(
            (r for r in family if shown(r.settings[SAMPLE_METHOD]) == sample), key=lambda r: places[shown(r.first.rank)]
        )
        colour, dashes, marker = look(samples, _STYLES.get(sample, sample))
        look_of = {"color": colour, "linestyle": dashes, "marker": marker}
        dodge = 0.08 * (i - (len(samples) - 1) / 2)  # error bars beside each other
        axes.errorbar(
            [places[shown(row.first.rank)] + dodge for row in mine],
            [row.statistics[key].mean for row in mine],
            yerr=[row.statistics[key].std or 0.0 for row in mine],
            capsize=2,
            elinewidth=0.8,
            label=sample,
            **look_of,
        )
        handles.append(line_handle(sample, **look_of))
    axes.set_xticks(range(len(ranks)), [shown(rank) for rank in ranks])
    axes.set_xlim(-0.4, len(ranks) - 0.6)
    axes.set_xlabel("rank")
    axes.set_ylabel(axis_label(data.metric))
    legend(figure, handles, "upper", seeds_title(family, "bars", key))
    return figure


def _comparisons(rows: list[Row]) -> int:
    """At how many ranks, and how often, sample methods can be compared."""
    by_rank: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        by_rank[shown(row.first.rank)].add(shown(row.settings[SAMPLE_METHOD]))
    return sum(len(samples) - 1 for samples in by_rank.values())
