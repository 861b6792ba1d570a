"""Draw the bits stored over the steps between resamples, from the study's records.

    python -m studies.capacity.figure [RECORDS]

writes capacity.png and capacity.pdf beside the page: means of the reported seeds with one standard deviation, of the
largest book. Methods that do not resample are levels. A second panel has the bits over the size of the book, if there
are runs of several sizes. spectrum.png has the singular values of the change. Variants of ROSA, its higher ranks, and
LoRA of more than four times the lowest one are in the tables only.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studies.capacity.measure import NUMERICAL, RECORDS
from studies.measured import Measured, Way, label, order
from studies.report import best_rate, load
from utils.data.phone_book import PhoneBook
from utils.errors import UserError, run_cli
from utils.plots._style import count_ticks, draw_points, log_ticks, new_axes, save, style
from utils.results.aggregate import Statistic
from utils.results.methods import method_colour

MARKERS = "os^vDPXd"  # methods of one colour differ by marker
SPECTRA = (12, 100, 0)  # steps between resamples whose spectra are drawn: the best, those of the first grid, never


def reported(runs: list[Measured]) -> dict[Way, list[Measured]]:
    """The reported seeds of each method that is drawn, at its best rate, in the order of tables."""
    ways: dict[Way, list[Measured]] = defaultdict(list)
    lowest = min((run.way.rank for run in runs if run.way.rank), default=0)
    for run in runs:
        most = 4 * lowest if run.way.method == "lora" else lowest
        if not run.trial and run.way.rank <= most and not (run.way.method == "rosa" and run.way.others):
            ways[run.way].append(run)
    return {way: best_rate(ways[way]) for way in sorted(ways, key=order)}


def draw(runs: list[Measured]) -> Figure:
    """Both panels; the second one only with runs of three sizes or more, because two make no curve.

    Raises:
        UserError: there is no run of a reported seed.
    """
    found: dict[Way, Statistic] = {}
    for way, seeds in reported(runs).items():
        if statistic := Statistic.of([run.bits / 1000 for run in seeds if run.bits is not None]):
            found[way] = statistic
    if not found:
        raise UserError("no run of a reported seed is there yet: run the groups of studies/capacity/sweep.yaml")
    sizes = sorted({way.keys for way in found})
    panels = 2 if len(sizes) > 2 else 1
    figure, axes = new_axes(3.2, panels)
    figure.set_figwidth(panels * figure.get_figwidth())
    _draw_steps(axes[0], {way: statistic for way, statistic in found.items() if way.keys == sizes[-1]})
    if len(sizes) > 2:
        _draw_sizes(axes[1], found, sizes)
    axes[0].set_ylabel("bits stored (kbit, higher is better)")
    return figure


def _draw_steps(axes: Axes, found: dict[Way, Statistic]) -> None:
    """Over the steps between resamples, with a level for each method that does not resample."""
    lines: dict[Way, dict[int, Statistic]] = defaultdict(dict)
    for way, statistic in found.items():
        lines[way._replace(every=0)][way.every] = statistic
    for number, (way, steps) in enumerate(lines.items()):
        colour = method_colour(way.method)
        if 0 in steps:
            axes.axhline(steps[0].mean, color=colour, linestyle="--", label=label(way))
            side = "top" if way.method == "rosa" else "bottom"  # the levels of two methods may coincide
            place: dict[str, Any] = {"ha": "center", "va": side}
            axes.text(0.8, steps[0].mean, label(way), transform=axes.get_yaxis_transform(), fontsize=6, **place)
        if resampled := {every: steps[every] for every in sorted(steps) if every}:
            text = label(way).replace(", never", "")
            look = {"marker": MARKERS[number % len(MARKERS)], "color": colour}
            draw_points(axes, list(resampled), list(resampled.values()), text, **look)
    axes.set_xscale("log")
    if counts := {way.every for way in found if way.every}:
        count_ticks(axes.xaxis, counts)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer steps between resamples")
    axes.legend(handles=axes.containers, fontsize=6, loc="center left")


def _draw_sizes(axes: Axes, found: dict[Way, Statistic], sizes: list[int]) -> None:
    """Over the size of the book, for the methods with runs of several sizes, and a grey line that stores everything."""
    content = {size: size * PhoneBook.target_bits / 1000 for size in sizes}
    axes.plot(list(content.values()), list(content.values()), color="#bbbbbb", label="everything")
    lines: dict[Way, dict[int, Statistic]] = defaultdict(dict)
    for way, statistic in found.items():
        lines[way._replace(keys=0)][way.keys] = statistic
    for number, (way, books) in enumerate(lines.items()):
        if len(books) > 1:
            look = {"marker": MARKERS[number % len(MARKERS)], "color": method_colour(way.method)}
            ordered = sorted(books)
            stored = [books[size] for size in ordered]
            draw_points(axes, [content[size] for size in ordered], stored, label(way), **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(content.values()), [f"{bits:.1f}" for bits in content.values()])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("information in the book (kbit)")
    axes.legend(fontsize=6)


def draw_spectra(runs: list[Measured]) -> Figure:
    """The singular values of ΔW over the largest one, averaged over layers and seeds, of the largest book."""
    figure, (axes,) = new_axes(3.2)
    figure.set_figwidth(1.8 * figure.get_figwidth())
    ways = reported(runs)
    largest = max(way.keys for way in ways)
    for number, way in enumerate(way for way in ways if way.keys == largest and way.every in SPECTRA):
        spectra = [run.study["change"]["spectrum"] for run in ways[way] if run.study]
        means = [statistics.fmean(values) for values in zip(*spectra, strict=True)]
        shown = [value for value in means if value > NUMERICAL / 10]
        look: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "color": method_colour(way.method)}
        axes.plot(range(1, len(shown) + 1), shown, label=label(way), markevery=(min(number, len(shown) - 1), 9), **look)
    axes.axhline(NUMERICAL, color="#bbbbbb", linestyle="--", label="counts for the numerical rank")
    axes.set_yscale("log")
    log_ticks(axes.yaxis)
    axes.set_xlabel("number of the singular value")
    axes.set_ylabel("singular value of ΔW over the largest")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main() -> None:
    """Write the figures."""
    runs = load(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDS)
    with style():
        for figure, name in ((draw(runs), "capacity"), (draw_spectra(runs), "spectrum")):
            for path in save(figure, Path(__file__).parent, name):
                print(path)


if __name__ == "__main__":
    run_cli(main)
