"""Draw the bits stored over the steps between resamples, from the study's records.

    python -m studies.capacity.figure [RECORDS]

writes capacity.png and capacity.pdf beside the page. A line joins medians of the reported seeds; each seed is a dot.
The first panel has the largest dataset, with a level for each method that does not resample. A second panel has the
share stored over the size of the dataset, if there are runs of several sizes. spectrum.png has the singular values of
the change. Variants of ROSA, its higher ranks, and LoRA of more than four times the lowest rank are in the tables only.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from studies.capacity.measure import NUMERICAL, RECORDS
from studies.measured import Measured, Way, order
from studies.report import best_rate, load
from utils.data.phone_book import PhoneBook
from utils.errors import UserError, run_cli
from utils.plots._style import log_ticks, new_axes, save, style
from utils.results.methods import method_colour, method_label

RANK_MARKERS = {1: "s", 2: "^", 4: "v"}  # of LoRA
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


def words(way: Way, interval: bool = False) -> str:
    """A method in words, with the steps between its resamples if asked for."""
    if not way.rank:
        return "full training of the layers"
    ramp = "".join(f", ramp of {found} steps" for found in re.findall(r"rewarm_steps=(\d+)", way.others))
    resampled = f", every {way.every} steps" if interval else ", resampled"
    never = ", never resampled" if way.method == "rosa" else ""
    return f"{method_label(way.method)}, rank {way.rank}{resampled if way.every else never}{ramp}"


def look(way: Way) -> dict[str, Any]:
    """One colour, marker and line for a method in both panels; the dashes of two methods fill each other's gaps."""
    marker = {"lora": RANK_MARKERS.get(way.rank, "s"), "rosa": "D" if way.every else "d", "relora": "P"}
    dashed = (4 if way.method == "rosa" else 0, (4, 4))
    line = "-" if way.every else dashed
    return {
        "color": method_colour(way.method),
        "marker": marker.get(way.method, "o"),
        "linestyle": line,
        "markerfacecolor": "white",
    }


def draw(runs: list[Measured]) -> Figure:
    """Both panels; the second one only with runs of three sizes or more, because two make no curve.

    Raises:
        UserError: there is no run of a reported seed.
    """
    found: dict[Way, list[float]] = {}
    for way, seeds in reported(runs).items():
        if bits := [run.bits / 1000 for run in seeds if run.bits is not None]:
            found[way] = bits
    if not found:
        raise UserError("no run of a reported seed is there yet: run the groups of studies/capacity/sweep.yaml")
    sizes = sorted({way.keys for way in found})
    panels = 2 if len(sizes) > 2 else 1
    figure, axes = new_axes(3.4, panels)
    figure.set_figwidth(panels * figure.get_figwidth())
    _draw_steps(axes[0], {way: bits for way, bits in found.items() if way.keys == sizes[-1]})
    if panels > 1:
        _draw_sizes(axes[1], found, sizes)
    entries = {str(line.get_label()): line for part in axes for line in part.lines}
    shown = [line for text, line in entries.items() if not text.startswith("_")]
    figure.legend(handles=shown, loc="outside lower center", ncols=2 * panels, fontsize=6)
    return figure


def _draw_steps(axes: Axes, found: dict[Way, list[float]]) -> None:
    """Over the steps between resamples, with a level for each method that does not resample."""
    lines: dict[Way, dict[int, list[float]]] = defaultdict(dict)
    for way, bits in found.items():
        lines[way._replace(every=min(way.every, 1))][way.every] = bits
    counts = sorted({way.every for way in found if way.every}) or [1]
    for way, steps in lines.items():
        if way.every:
            _draw_seeds(axes, dict(sorted(steps.items())), label=words(way), **look(way))
        else:  # the markers of two levels that coincide lie at different ends
            level, end = [statistics.median(steps[0])] * 2, [0 if way.method == "rosa" else 1]
            axes.plot([counts[0] / 1.3, counts[-1] * 1.3], level, label=words(way), markevery=end, **look(way))
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("optimizer steps between resamples")
    axes.set_ylabel("kilobits stored (higher is better)")


def _draw_sizes(axes: Axes, found: dict[Way, list[float]], sizes: list[int]) -> None:
    """The share stored over the size of the dataset. ROSA at the intervals with runs of several sizes."""
    lines: dict[Way, dict[int, list[float]]] = defaultdict(dict)
    for way, bits in found.items():
        lines[way._replace(keys=0)][way.keys] = [100 * one / (way.keys * PhoneBook.target_bits / 1000) for one in bits]
    several = {way: books for way, books in lines.items() if len(books) > 1 or way.method != "rosa"}
    for number, (way, books) in enumerate(several.items()):
        aside = 2 ** (0.09 * (number - (len(several) - 1) / 2))  # so that equal values are seen beside each other
        shares = {size * PhoneBook.target_bits / 1000 * aside: books[size] for size in sorted(books)}
        _draw_seeds(axes, shares, label=words(way), **look(way))
    axes.set_xscale("log", base=2)
    content = [size * PhoneBook.target_bits / 1000 for size in sizes]
    axes.set_xticks(content, [f"{bits:.1f}" for bits in content])
    axes.set_ylim(bottom=0)
    intervals = ", ".join(sorted({str(way.every) for way in several if way.every}))
    axes.set_xlabel(f"kilobits in the dataset (resampled every {intervals} steps)")
    axes.set_ylabel("share stored (%)")


def _draw_seeds(axes: Axes, values: dict[Any, list[float]], **style: Any) -> None:
    """A line through the medians, and a dot for each seed."""
    axes.plot(list(values), [statistics.median(seeds) for seeds in values.values()], **style)
    dots = [(x, seed) for x, seeds in values.items() for seed in seeds]
    axes.plot(*zip(*dots, strict=True), ".", markersize=2.5, color=style["color"], label="_seeds")


def draw_spectra(runs: list[Measured]) -> Figure:
    """The singular values of ΔW over the largest one, averaged over layers and seeds, of the largest dataset."""
    figure, (axes,) = new_axes(3.2)
    figure.set_figwidth(1.8 * figure.get_figwidth())
    ways = reported(runs)
    largest = max(way.keys for way in ways)
    for number, way in enumerate(way for way in ways if way.keys == largest and way.every in SPECTRA):
        spectra = [run.study["change"]["spectrum"] for run in ways[way] if run.study]
        means = [statistics.fmean(values) for values in zip(*spectra, strict=True)]
        shown = [value for value in means if value > NUMERICAL / 10]
        line = {"linestyle": "--" if way.every == SPECTRA[1] else "-"}
        marks = 1 if len(shown) < 9 else (number, 9)
        axes.plot(range(1, len(shown) + 1), shown, label=words(way, interval=True), markevery=marks, **look(way) | line)
    axes.axhline(NUMERICAL, color="#bbbbbb", linestyle="--", label="threshold of the numerical rank")
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
