"""Draw the bits stored over the size of the book, from the study's records.

    python -m studies.capacity.figure [RECORDS]

writes capacity.png and capacity.pdf beside the page: means of the reported seeds with one standard deviation.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from studies.capacity.report import RECORDS, Measured, Way, best_rate, label, load, order
from utils.data.phone_book import PhoneBook
from utils.errors import UserError, run_cli
from utils.plots._style import draw_points, new_axes, save, style
from utils.results.aggregate import Statistic
from utils.results.methods import method_colour

MARKERS = "os^vDPXd"  # methods of one colour differ by marker


def draw(runs: list[Measured]) -> Figure:
    """A line for each method, and a grey one for a model that stores everything.

    Raises:
        UserError: there is no run of a reported seed.
    """
    ways: dict[Way, list[Measured]] = defaultdict(list)
    for run in (run for run in runs if not run.trial):
        ways[run.way].append(run)
    found: dict[Way, dict[float, list[float]]] = defaultdict(dict)
    for way, same in ways.items():
        bits = [run.bits / 1000 for run in best_rate(same)]
        found[0, *way[1:]][way[0] * PhoneBook.target_bits / 1000] = bits
    if not found:
        raise UserError("no run of a reported seed is there yet: run the groups of studies/capacity/sweep.yaml")
    figure, (axes,) = new_axes(3.2)
    demands = sorted({demand for books in found.values() for demand in books})
    axes.plot(demands, demands, color="#bbbbbb", label="everything")
    for number, way in enumerate(sorted(found, key=order)):
        books = sorted(found[way].items())
        stored = [statistic for _, bits in books if (statistic := Statistic.of(bits))]
        look = {"marker": MARKERS[number % len(MARKERS)], "color": method_colour(way[1])}
        draw_points(axes, [demand for demand, _ in books], stored, label(way), **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(demands, [f"{demand:.1f}" for demand in demands])
    axes.set_xlabel("information in the book (kbit)")
    axes.set_ylabel("bits stored (kbit, higher is better)")
    axes.legend(fontsize=6)
    return figure


def main() -> None:
    """Write the figure."""
    runs = load(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDS)
    with style():
        for path in save(draw(runs), Path(__file__).parent, "capacity"):
            print(path)


if __name__ == "__main__":
    run_cli(main)
