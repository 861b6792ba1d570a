"""Figures: one file each in this folder, registered by name and found by its being here.

A new figure is a new file with a function under ``@register``: it takes ``PlotData`` and returns a matplotlib
``Figure``, or raises ``NothingToDraw`` with what is missing. ``_data.py`` collects what is drawn;
``_style.py`` and ``_curves.py`` are shared parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from rosa.registry import Registry
from utils.errors import UserError, printable
from utils.plots._data import NothingToDraw, PlotData, load
from utils.plots._style import save, style
from utils.results.read import plain
from utils.text import slug

__all__ = ["NothingToDraw", "Plot", "PlotData", "draw_figures", "plots", "register"]

Draw = Callable[[PlotData], Figure]


@dataclass(frozen=True)
class Plot:
    """A registered figure: its name is the file's name, ``about`` the line for --help."""

    name: str
    about: str
    draw: Draw


_PLOTS: Registry[Plot] = Registry(__name__, "figure")


def register(name: str, about: str) -> Callable[[Draw], Draw]:
    """Decorator: make a function known as the figure ``name``."""

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
    """Draw the figures of one data set's runs as PNG and PDF, one set a model.

    Args:
        folder: holds the runs of one data set.
        out: where the files go; None for ``<folder>/figures``.
        only: names of the figures to draw; empty for all.
        metric: a column of compile_results.py for the figures of a final metric; None for the test perplexity, or
            the validation loss where nothing is evaluated.

    Returns: the files written. Figures with nothing to show are named on the terminal with what is missing.

    Raises:
        UserError: no such folder, no runs, runs of several data sets, an unknown figure or metric, a folder that
            cannot be written, or nothing to draw at all.
    """
    known = plots()
    for name in only:
        if name not in known:
            raise UserError(f"--only: no figure is named {plain(name)!r}. Known: {', '.join(known)}")
    chosen = list(dict.fromkeys(only)) or list(known)
    every_model = load(folder, metric)
    out = Path(folder) / "figures" if out is None else out
    written: list[Path] = []
    missing: list[str] = []
    slugs = [slug(data.model)[:80] or "unnamed" for data in every_model]
    for i, data in enumerate(every_model):
        model = slugs[i] if slugs.count(slugs[i]) == 1 else f"{slugs[i]}-{i + 1}"
        for name in chosen:
            stem = "-".join(
                [name, *([model] if len(every_model) > 1 else []), *([slug(metric)[:80]] if metric else [])]
            )
            with style():
                try:
                    figure = known[name].draw(data)
                except NothingToDraw as reason:
                    missing.append(f"{stem}: not drawn: {reason}")
                    continue
                written += save(figure, out, stem)
        for note in data.notes:
            print(printable(note))
    if not written:
        raise UserError("nothing to draw.\n" + "\n".join(f"  {line}" for line in missing))
    for line in [*missing, *(f"written: {path}" for path in written)]:
        print(printable(line))
    return written
