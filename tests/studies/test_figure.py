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
    lines = {str(line.get_label()): line for line in steps.lines}
    levels = {f"LoRA, rank {rank}": f"LoRA r={rank}" for rank in (1, 2, 4)}
    levels |= {"full training of the layers": "full, layers only", "ROSA, rank 1, never resampled": "ROSA r=1, never"}
    for name, way in levels.items():
        bits = [run.bits for run in reported if label(run.way) == way and run.bits is not None]
        assert len(bits) == 5 and lines[name].get_ydata()[0] == pytest.approx(statistics.median(bits) / 1000)
    rosa, relora = "ROSA, rank 1, resampled", "ReLoRA, rank 1, resampled, ramp of 3 steps"
    intervals = [6, 12, 25, 50, 100, 200, 400, 800]
    assert list(lines[rosa].get_xdata()) == intervals and list(lines[relora].get_xdata()) == [12]
    assert {tick.get_text() for tick in steps.get_xticklabels()} == set(map(str, intervals))
    several = {str(line.get_label()): line for line in sizes.lines}
    assert several.keys() == lines.keys() == {*levels, rosa, relora, "_seeds"}
    for name, line in several.items():
        assert len(line.get_xdata()) == (1 if name == relora else 5) or name == "_seeds"
        assert max(line.get_ydata()) <= 100, "no more than everything"
        assert line.get_marker() == lines[name].get_marker(), "one marker in both panels"

    names = [line.get_label() for line in draw_spectra(runs).axes[0].lines]
    assert "ROSA, rank 1, every 12 steps" in names and not any("ROSA, rank 2" in name for name in names)
