"""How figures look: one column wide, safe for colour-blind readers and in grey, the same bytes each time."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from utils.errors import UserError
from utils.files import write_bytes
from utils.tables.aggregate import Row
from utils.tables.columns import Column
from utils.tables.results import METHOD_LABELS, shown

WIDTH = 3.4  # inches: one column of a two-column page
DPI = 300

_RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
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
    "pdf.fonttype": 42,  # TrueType, as publishers ask
    "hatch.linewidth": 0.5,
    "text.usetex": False,
    "text.parse_math": False,  # a dollar in a name is a dollar
}

# Okabe and Ito's palette; line style and marker tell the same in grey.
_METHODS: dict[str, tuple[str, Any, str]] = {
    "none": ("#333333", (0, (6, 1.5, 1, 1.5)), "D"),
    "lora": ("#E69F00", (0, (4, 1.5)), "s"),
    "rosa": ("#0072B2", "-", "o"),
}
_FURTHER: list[tuple[str, Any, str]] = [
    ("#009E73", (0, (1, 1.2)), "^"),
    ("#CC79A7", (0, (3, 1, 1, 1, 1, 1)), "v"),
    ("#D55E00", (0, (8, 2)), "P"),
    ("#56B4E9", (0, (2, 2)), "X"),
]
BAND = 0.18  # opacity of a band over seeds


def style() -> AbstractContextManager[None]:
    """The settings within which every figure is drawn and saved; none outlives the block."""
    return mpl.rc_context(_RC)


def new_axes(height: float = 2.5, columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """A figure of column width and its axes side by side, without pyplot and its global state."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False, **kwargs)[0])


def look(names: Sequence[str], name: str) -> tuple[str, Any, str]:
    """Colour, line style and marker of ``name``, one of ``names``: the same for a known method in every figure."""
    if name in _METHODS:
        return _METHODS[name]
    others = [other for other in dict.fromkeys(names) if other not in _METHODS]
    return _FURTHER[others.index(name) % len(_FURTHER)]


def label(method: str) -> str:
    """A method's name in a legend, cut where it would not fit a column."""
    return cut(METHOD_LABELS.get(method, method))


def cut(text: str, length: int = 22) -> str:
    """``text`` or its beginning with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def ranks_of(rows: Sequence[Row]) -> list[int | float]:
    """The ranks of ``rows``: ratios first, then ranks proper, ascending (1.0 and 1 are different ranks)."""
    ranks = {shown(row.first.rank): row.first.rank for row in rows if row.first.rank is not None}
    return sorted(ranks.values(), key=lambda rank: (isinstance(rank, int), rank))


def rank_colour(ranks: Sequence[int | float], rank: int | float | None) -> Any:
    """A colour for ``rank``: dark to light in order, so that the order survives in grey; black without a rank."""
    if rank is None:
        return "#000000"
    place = [shown(other) for other in ranks].index(shown(rank))
    return mpl.colormaps["viridis"](0.88 * place / max(1, len(ranks) - 1) if len(ranks) > 1 else 0.3)


def legend(figure: Figure, handles: Sequence[Any], where: str, title: str | None = None, handle: float = 2.6) -> None:
    """A legend outside the axes, ``where`` upper or lower, in as few rows as the figure's width allows."""
    texts = [str(entry.get_label()) for entry in handles]
    if not texts:
        return
    em = 7 / 72  # inches: the legend's font size
    for columns in range(len(texts), 0, -1):
        rows, longer = divmod(len(texts), columns)  # matplotlib fills by column, the first ones with a row more
        starts = [rows * i + min(i, longer) for i in range(columns + 1)]
        widths = [max(map(len, texts[i:j])) * 0.6 * em for i, j in itertools.pairwise(starts)]
        if sum(widths) + len(widths) * (handle + 0.8) * em + (len(widths) - 1) * em <= WIDTH - 0.1:
            break
    figure.legend(handles=list(handles), loc=f"outside {where} center", ncols=columns, title=title, handlelength=handle)


def seeds_title(rows: Sequence[Row], what: str, key: str | None = None) -> str | None:
    """What ``what`` (band, bars) stands for, where any row has more than one seed."""
    several = any(len(row.results) > 1 if key is None else row.statistics[key].n > 1 for row in rows)
    return f"{what}: ± 1 std over seeds" if several else None


def axis_label(column: Column) -> str:
    """A column's name spelled out, with the direction that is better."""
    name = column.header.replace("ppl", "perplexity").replace("val ", "validation ")
    return cut(name, 30) + {1: " (higher is better)", -1: " (lower is better)", 0: ""}[column.better]


def line_handle(text: str, **kwargs: Any) -> Line2D:
    """A legend entry drawn as a line."""
    return Line2D([], [], label=text, **kwargs)


def plain_log(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers at 1, 2 and 5 of each decade."""
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))


def whole_epochs(axes: Axes, x: Sequence[float]) -> None:
    """Ticks at whole epochs where ``x`` spans several."""
    if max(x) - min(x) >= 2:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    elif max(x) == min(x):
        axes.set_xlim(x[0] - 1, x[0] + 1)
        axes.set_xticks([x[0]], [f"{x[0]:g}"])


def human(value: float) -> str:
    """A count in thousands, millions or billions: 5.7M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write ``<folder>/<stem>.png`` and ``.pdf`` atomically and without dates, once both are rendered."""
    rendered = {}
    for suffix, metadata in (
        ("png", {"Software": None}),
        ("pdf", {"CreationDate": None, "Creator": None, "Producer": None}),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=metadata)
        rendered[folder / f"{stem}.{suffix}"] = buffer.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in rendered.items():
            write_bytes(path, content)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Give another folder with --out.") from None
    return list(rendered)
