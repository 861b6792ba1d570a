"""Peak memory and time by method and rank, on one kind of hardware; resampling on top of training."""

from __future__ import annotations

from collections import Counter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from utils.plots import NothingToDraw, PlotData, register
from utils.plots._style import cut, label, legend, look, new_axes
from utils.tables.aggregate import Row
from utils.tables.results import shown

_MEMORY, _TIME, _RESAMPLE = "peak_memory_mib", "train_seconds", "resample_seconds"
_SEEN = 0.005  # share of the longest bar from which a part can be seen


@register("cost", "peak memory and training time by method and rank")
def draw(data: PlotData) -> Figure:
    """Two panels of horizontal bars with one standard deviation over seeds."""
    rows = [row for row in data.trained() if row.statistics.keys() & {_MEMORY, _TIME}]
    if not rows:
        raise NothingToDraw(f"no finished run of {data.model} has recorded its time or memory")
    usual = Counter(_hardware(row) for row in rows).most_common(1)[0][0]
    if others := {_hardware(row) for row in rows} - {usual}:
        data.note(f"{data.model}: cost shows the runs on {usual} only, not those on {'; '.join(sorted(others))}")
        rows = [row for row in rows if _hardware(row) == usual]
    figure, axes = new_axes(1.2 + 0.19 * len(rows), columns=2, sharey=True)
    methods = [row.first.method for row in rows]
    unit, divisor = _time_unit(max((row.statistics[_TIME].mean for row in rows if _TIME in row.statistics), default=0))
    panels = ((_MEMORY, "peak memory\n(GiB)", 1024.0), (_TIME, f"training time\n({unit})", divisor))
    for axis, (key, text, scale) in zip(axes, panels, strict=True):
        for place, row in enumerate(rows):
            statistic = row.statistics.get(key)
            if statistic is None:
                axis.text(0, place, " not recorded", va="center", fontsize=6)
                continue
            axis.barh(
                place,
                statistic.mean / scale,
                xerr=statistic.std / scale if statistic.std else None,
                height=0.7,
                color=look(methods, row.first.method)[0],
                error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#777777"},
            )
        axis.set_xlabel(text)
        axis.set_xlim(left=0)
        axis.grid(axis="y", visible=False)
    _add_resampling(figure, axes[1], rows, divisor)
    axes[0].set_yticks(range(len(rows)), [_name(row) for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _add_resampling(figure: Figure, axis: Axes, rows: list[Row], divisor: float) -> None:
    """Hatched bars after those of training, which do not contain it; a legend where there is any."""
    look_of = {"facecolor": "white", "edgecolor": "#333333", "hatch": "//////", "linewidth": 0.5}
    longest = max((row.statistics[_TIME].mean for row in rows if _TIME in row.statistics), default=0)
    any_drawn = False
    for place, row in enumerate(rows):
        training, resampling = row.statistics.get(_TIME), row.statistics.get(_RESAMPLE)
        if training and resampling and resampling.mean > _SEEN * longest:
            axis.barh(place, resampling.mean / divisor, left=training.mean / divisor, height=0.7, zorder=0.5, **look_of)
            any_drawn = True
    if any_drawn:
        legend(figure, [Patch(label="resampling", **look_of)], "upper", handle=1.6)


def _name(row: Row) -> str:
    rank = "" if row.first.rank is None else f" {shown(row.first.rank)}"
    return cut(label(row.first.method), 16) + rank


def _hardware(row: Row) -> str:
    return " / ".join(sorted({result.hardware for result in row.results}))


def _time_unit(seconds: float) -> tuple[str, float]:
    return ("h", 3600.0) if seconds >= 7200 else ("min", 60.0) if seconds >= 120 else ("s", 1.0)
