"""The style of figures: one column wide, readable in grey and for colour-blind readers, reproducible to the byte.

A method has one colour and one line style in all figures. A rank has a shade of the colour and a marker.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from utils.io.files import write_results
from utils.metrics import HIGHER, LOWER, NEITHER
from utils.plots._data import rank_order
from utils.results.aggregate import Row, Statistic
from utils.results.methods import method_colour, method_label
from utils.text import as_typed, cut, human

WIDTH = 3.4  # inches: one column of a two-column page
DPI = 300

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so that every machine has it
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.0,
    "legend.handletextpad": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # TrueType, as publishers require
    "hatch.linewidth": 0.5,
    "text.usetex": False,
    "text.parse_math": False,  # a dollar sign in a name is text
}

# Okabe and Ito's palette. Line styles and markers distinguish methods in grey.
_PALETTE: list[tuple[str, Any, str]] = [
    ("#009E73", (0, (1, 1.2)), "^"),
    ("#CC79A7", (0, (3, 1, 1, 1, 1, 1)), "v"),
    ("#D55E00", (0, (8, 2)), "P"),
    ("#56B4E9", (0, (2, 2)), "X"),
    ("#E69F00", (0, (4, 1.5)), "s"),
    ("#0072B2", "-", "o"),
    ("#333333", (0, (6, 1.5, 1, 1.5)), "D"),
    ("#888888", (0, (2, 1, 1, 1)), "d"),
]
_RANK_MARKERS = ("o", "s", "^", "v", "P", "X", "p", "*")
BAND = 0.18  # opacity of a band over seeds


def style() -> AbstractContextManager[None]:
    """A context with matplotlib's settings for figures, which are undone at its end."""
    return mpl.rc_context(_RC)


def new_axes(height: float = 2.5, columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """A figure of column width and its axes side by side, without pyplot's global state."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False, **kwargs)[0])


def method_style(names: Sequence[str], name: str) -> tuple[str, Any, str]:
    """Colour, line style and marker of the method ``name``, one of ``names``.

    A method without a colour of its own gets one that no other method has.
    """
    own = {other: method_colour(other) for other in (*names, name, "none")}
    if (colour := own[name]) is not None:
        return next((entry for entry in _PALETTE if entry[0] == colour), (colour, "-", "o"))
    unused = [entry for entry in _PALETTE if entry[0] not in own.values()] or _PALETTE
    others = [other for other in own if own[other] is None]
    return unused[others.index(name) % len(unused)]


def variant_dashes(dashes: Any, index: int) -> Any:
    """The line style of the line number ``index`` of those that share a colour; the first has ``dashes``."""
    return [dashes, *(other for _, other, _ in _PALETTE if other != dashes)][index % len(_PALETTE)]


def label(method: str, length: int = 22) -> str:
    """A method's name for a legend, cut to ``length`` characters."""
    return cut(method_label(method), length)


def ranks_of(rows: Iterable[Row]) -> list[int | float]:
    """The different ranks of ``rows`` in order: ratios first, then integer ranks."""
    ranks = {as_typed(row.first.rank): row.first.rank for row in rows if row.first.rank is not None}
    return sorted(ranks.values(), key=rank_order)


def rank_name(ranks: Sequence[int | float]) -> str:
    """The name of the ranks: a float is the ratio of the rank R to the smaller side of a weight, an int is R."""
    kinds = {type(rank) for rank in ranks}
    return "rank R" if kinds == {int} else "rank ratio" if kinds == {float} else "rank ratio or rank R"


def rank_text(ranks: Sequence[int | float], rank: int | float) -> str:
    """``rank`` as a number, with "R=" before an integer if ``ranks`` also has ratios."""
    both = len({type(other) for other in ranks}) > 1
    return f"R={rank}" if both and isinstance(rank, int) else as_typed(rank)


def row_label(ranks: Sequence[int | float], row: Row, length: int = 22) -> str:
    """Method and rank. The rank is left out if all rows have the same, because ``legend_title`` names it."""
    name = label(row.first.method, length)
    return name if row.first.rank is None or len(ranks) < 2 else f"{name} {rank_text(ranks, row.first.rank)}"


def rank_marker(ranks: Sequence[int | float], rank: int | float) -> str:
    """The marker of ``rank``. The first eight of ``ranks`` have different markers."""
    return _RANK_MARKERS[[as_typed(other) for other in ranks].index(as_typed(rank)) % len(_RANK_MARKERS)]


def rank_shade(colour: str, ranks: Sequence[int | float], rank: int | float) -> str:
    """``colour`` for a single rank. Of several the first is darkest, so that the order is visible in grey."""
    index = [as_typed(other) for other in ranks].index(as_typed(rank))
    return blend(colour, 0.8 * index / (len(ranks) - 1) - 0.4) if len(ranks) > 1 else colour


def blend(colour: str, amount: float) -> str:
    """``colour``, lighter for positive ``amount`` (1 is white), darker for negative (−1 is black)."""
    return to_hex([(1 - abs(amount)) * part + max(amount, 0.0) for part in to_rgb(colour)])


def arrange(groups: Sequence[Sequence[Any]]) -> tuple[list[Any], int]:
    """Legend entries and the number of columns: one column per group if they fit, otherwise as many as fit."""
    longest = max(map(len, groups), default=0)
    padded = [[*group, *(line_handle("", linestyle="none") for _ in range(longest - len(group)))] for group in groups]
    handles = [handle for group in padded for handle in group]
    if _legend_width(handles, len(groups)) <= WIDTH - 0.1:
        return handles, max(len(groups), 1)
    handles = [handle for group in groups for handle in group]
    fitting = (n for n in range(len(handles), 0, -1) if _legend_width(handles, n) <= WIDTH - 0.1)
    return handles, next(fitting, 1)


def legend(figure: Figure, groups: Sequence[Sequence[Any]], title: str = "") -> None:
    """Add a legend above the axes, with the columns of ``arrange``."""
    handles, columns = arrange(groups)
    if handles or title:
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, title=title or None)


def add_title(figure: Figure, text: str) -> None:
    """Add a line above the title of the figure's legend, or above the axes if it has no legend."""
    if not figure.legends:
        figure.suptitle(cut(text, 54), fontsize=_RC["legend.title_fontsize"])
    for found in figure.legends[:1]:
        found.set_title("\n".join(filter(None, [cut(text, 54), found.get_title().get_text()])))
        found.get_title().set_multialignment("center")


def _legend_width(handles: Sequence[Any], columns: int) -> float:
    """The approximate width of a legend, in inches."""
    texts = [str(entry.get_label()) for entry in handles]
    em = _RC["legend.fontsize"] / 72
    rows, longer = divmod(len(texts), max(columns, 1))  # the first columns have one entry more
    starts = [rows * i + min(i, longer) for i in range(columns + 1)]
    widths = [max(map(len, texts[i:j]), default=0) * 0.55 * em for i, j in itertools.pairwise(starts)]
    return sum(widths) + len(widths) * (_RC["legend.handlelength"] + 0.8) * em + (len(widths) - 1) * em


def legend_title(ranks: Sequence[int | float], what: str, counts: Iterable[int]) -> str:
    """A legend's title: the name of the ranks or the only rank, and the meaning of error bars.

    Args:
        what: what shows the standard deviation: "band" or "error bars".
        counts: numbers of seeds; the title mentions those above one.
    """
    parts = [rank_name(ranks) + (f" {as_typed(ranks[0])}" if len(ranks) == 1 else "")] if ranks else []
    several = sorted({n for n in counts if n > 1})
    if several:
        n = f"{several[0]}" if len(several) == 1 else f"{several[0]}–{several[-1]}"
        parts.append(f"{what}: ± 1 std, {n} seeds")
    return "; ".join(parts)


def axis_label(name: str, unit: str, better: int) -> str:
    """A quantity's full name, unit and better direction (HIGHER, LOWER or NEITHER), on two lines if it is long."""
    name = cut(name.replace("ppl", "perplexity").replace("val ", "validation "), 30)
    directions = {HIGHER: "higher is better", LOWER: "lower is better", NEITHER: ""}
    words = [word for word in (unit, directions[better]) if word]
    text = f"{name} ({', '.join(words)})" if words else name
    return text if len(text) <= 40 else text.replace(", ", ",\n", 1)


def line_handle(text: str, **kwargs: Any) -> Line2D:
    """A legend entry drawn as a line."""
    return Line2D([], [], label=text, **kwargs)


def draw_points(axes: Axes, x: Sequence[float], values: Sequence[Statistic], text: str, **line_style: Any) -> Line2D:
    """Draw means with one standard deviation, joined by a line, and return the legend entry.

    Error bars are drawn over the markers and their caps are wider, so that small deviations are visible.
    """
    line_style |= {"markerfacecolor": "white", **({"linestyle": "none"} if len(x) == 1 else {})}
    deviations = [math.nan if statistic.std is None else statistic.std for statistic in values]
    means = [statistic.mean for statistic in values]
    bars: dict[str, Any] = {"capsize": 3.5, "capthick": 0.9, "elinewidth": 0.9, "barsabove": True}
    axes.errorbar(x, means, yerr=deviations, label=text, **bars, **line_style)
    return line_handle(text, **line_style)


def log_ticks(axis: Any) -> None:
    """Set ticks of a logarithmic axis at 1, 2 and 5 times each power of ten, without exponents."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))


def count_ticks(axis: Any, counts: Iterable[float]) -> None:
    """Set ticks of a logarithmic axis at ``counts``, except those too close to the previous tick."""
    ordered = sorted(set(counts))
    nearest = max(1.25, (ordered[-1] / ordered[0]) ** (1 / 6))
    ticks: list[float] = []
    for count in ordered:
        if not ticks or count / ticks[-1] > nearest:
            ticks.append(count)
    axis.set_ticks(ticks, [human(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def epoch_axis(axes: Axes, first: float, last: float) -> None:
    """Set the x axis to whole epochs around ``first`` to ``last``, with ticks at whole epochs only."""
    low, high = math.floor(first), math.ceil(last)
    margin = 0.03 * (high - low) or 0.5
    axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Render ``<folder>/<stem>.png`` and ``.pdf`` without dates, then write each atomically."""
    rendered = {}
    for suffix, metadata in (
        ("png", {"Software": None}),
        ("pdf", {"CreationDate": None, "Creator": None, "Producer": None}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
        rendered[folder / f"{stem}.{suffix}"] = buffer.getvalue()
    write_results(folder, rendered)
    return list(rendered)
