"""The figures of the capacity study show what its tables have, of the lowest rank."""

from __future__ import annotations

import statistics

import pytest

from studies.capacity.figure import draw, draw_spectra
from studies.capacity.measure import RECORDS
from studies.measured import label
from studies.report import load


def test_the_figures_are_of_the_records() -> None:
    runs = load(RECORDS)
    reported = [run for run in runs if run.way.keys == 800 and not run.trial]
    steps, sizes = draw(runs).axes
    levels = {line.get_label(): line.get_ydata()[0] for line in steps.lines if not line.get_label().startswith("_")}
    assert set(levels) == {"full, layers only", "ROSA r=1, never", *(f"LoRA r={rank}" for rank in (1, 2, 4))}
    for name, level in levels.items():
        bits = [run.bits for run in reported if label(run.way) == name and run.bits is not None]
        assert len(bits) == 5 and level == pytest.approx(statistics.fmean(bits) / 1000)
    rosa, relora = steps.containers
    assert list(rosa.lines[0].get_xdata()) == [6, 12, 25, 50, 100, 200, 400, 800]
    assert list(relora.lines[0].get_xdata()) == [12]
    assert {len(container.lines[0].get_xdata()) for container in sizes.containers} == {5}

    names = [line.get_label() for line in draw_spectra(runs).axes[0].lines]
    assert "ROSA r=1, every 12 steps" in names and not any("ROSA r=2" in name for name in names)
