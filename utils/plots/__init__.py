"""Figures, one file per figure, registered by name.

A new figure is a new file here with a function under ``@register``; no list has to be edited. The function takes
``PlotData`` and returns a matplotlib ``Figure``, or raises ``NothingToDraw`` with the reason. Shared parts:
``_data.py`` prepares rows and curves, ``_style.py`` sets colours, axes and legends, ``_curves.py`` draws curves over
epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from rosa.registry import Registry
from utils.errors import UserError, printable
from utils.io.archives import archive_of
from utils.plots._data import NothingToDraw, PlotData, load_plot_data
from utils.plots._style import add_title, save, style
from utils.text import printable_line, slug

__all__ = ["NothingToDraw", "Plot", "PlotData", "draw_figures", "plots", "register"]

Draw = Callable[[PlotData], Figure]


@dataclass(frozen=True)
class Plot:
    """A registered figure."""

    name: str  # also the beginning of its files' names
    about: str  # a line for --help
    draw: Draw


_PLOTS: Registry[Plot] = Registry(__name__, "figure")


def register(name: str, about: str) -> Callable[[Draw], Draw]:
    """Decorator: register a function as the figure ``name``."""

    def add(draw: Draw) -> Draw:
        _PLOTS.add(Plot(name, about, draw), name)
        return draw

    return add


def plots() -> dict[str, Plot]:
    """Every registered figure by name."""
    return _PLOTS.all()


def draw_figures(
    folder: str | Path, out: Path | None = None, only: Sequence[str] = (), metric: str | None = None
) -> list[Path]:
    """Draw the figures of one data set's runs as PNG and PDF, one set of figures per model.

    Args:
        folder: has the runs of one data set.
        out: the folder of the files; None for ``<folder>/figures``.
        only: names of the figures to draw; empty for all.
        metric: a column of compile_results.py for the figures of a final metric; None for the test perplexity, or
            the validation loss if no run is evaluated.

    Returns: the files written. For a figure of ``only`` that cannot be drawn, the terminal shows the reason.

    Raises:
        UserError: a missing folder, no runs, runs of several data sets, an unknown figure or metric, a folder that
            cannot be written, or no figure that can be drawn.
    """
    known = plots()
    for name in only:
        if name not in known:
            raise UserError(f"--only: no figure is named {printable_line(name)!r}. Known: {', '.join(known)}")
    chosen = list(dict.fromkeys(only)) or list(known)
    if out is None and (archive := archive_of(folder)):
        raise UserError(f"Set --out: {printable(archive)} is an archive, which no figure can be written into.")
    models = load_plot_data(folder, metric)
    out = Path(folder) / "figures" if out is None else out
    written: list[Path] = []
    missing: list[str] = []
    slugs = [slug(data.model)[:80] or "unnamed" for data in models]
    for i, data in enumerate(models):
        data.asked = bool(only)
        model = slugs[i] if slugs.count(slugs[i]) == 1 else f"{slugs[i]}-{i + 1}"
        for name in chosen:
            stem = "-".join([name, *([model] if len(models) > 1 else []), *([slug(metric)[:80]] if metric else [])])
            with style():
                try:
                    figure = known[name].draw(data)
                    add_title(figure, f"{data.dataset}, {data.model}")
                except NothingToDraw as reason:
                    missing.append(f"{stem}: not drawn: {reason}")
                    continue
                written += save(figure, out, stem)
        for note in data.notes:
            print(printable(note))
    if not written:
        raise UserError("nothing to draw.\n" + "\n".join(f"  {line}" for line in missing))
    for line in [*(missing if only else []), *(f"written: {path}" for path in written)]:
        print(printable(line))
    return written
