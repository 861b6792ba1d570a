"""The figure of a search: every trial is a point, and the star is the rate that was trained with other seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plots.test_plots import error_bars, figure_of, lines, texts
from tests.records import write_run
from utils.plots import NothingToDraw, plots
from utils.plots._data import load_plot_data
from utils.tables import compile_results

LOSSES = {1e-3: 1.4, 3e-4: 1.5, 3e-3: 1.45}


def stars(figure: object) -> list[tuple[float, float]]:
    found = [line for line in figure.axes[0].lines if line.get_marker() == "*"]  # type: ignore[attr-defined]
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in found]


def search(folder: Path, method: str, rank: int, shift: float = 0.0, **config: object) -> None:
    for rate, loss in LOSSES.items():
        trial = {"train.lr": rate, "output.search": True, **config}
        # the hash of a run's group knows nothing of output.search
        group = f"{method}-{rank}-{rate}-{config}"
        write_run(folder, method=method, rank=rank, seed=100, loss=loss + shift, config=trial, record={"group": group})


def test_every_trial_is_a_point_and_the_chosen_rate_has_the_star(tmp_path: Path) -> None:
    search(tmp_path, "lora", 4)
    search(tmp_path, "rosa", 4, 0.1)
    for seed in (0, 1):
        record = {"group": "lora-4-0.003-{}"}  # chosen, though not the lowest here: the star says what was trained
        write_run(tmp_path, method="lora", rank=4, seed=seed, loss=1.0, config={"train.lr": 3e-3}, record=record)
    figure = figure_of("lr_curves", tmp_path)
    drawn = lines(figure)
    assert drawn["LoRA"] == ([3e-4, 1e-3, 3e-3], [1.5, 1.4, 1.45])
    assert drawn["ROSA"][1] == pytest.approx([1.6, 1.5, 1.55])
    assert stars(figure) == [(3e-3, 1.45)]
    assert texts(figure) == ["LoRA", "ROSA", "chosen, at the end of the rates"] and figure.axes[0].get_xscale() == "log"
    assert "4" in figure.legends[0].get_title().get_text()


def test_one_star_on_a_line_and_a_note_of_methods_without_trials(tmp_path: Path) -> None:
    search(tmp_path, "lora", 4)
    for rate in (3e-3, 1e-3):
        record = {"group": f"lora-4-{rate}-{{}}"}
        write_run(tmp_path, method="lora", rank=4, config={"train.lr": rate}, record=record)
        write_run(tmp_path, method="rosa", rank=8, config={"train.lr": rate})
    (data,) = load_plot_data(tmp_path)
    figure = plots()["lr_curves"].draw(data)
    assert stars(figure) == [(1e-3, 1.4)] and set(lines(figure)) == {"LoRA"}
    assert "gpt2: lr_curves shows trials of searches only, and there are none of ROSA 8" in data.notes


def test_a_method_with_one_finished_trial_is_named(tmp_path: Path) -> None:
    search(tmp_path, "lora", 4)
    write_run(tmp_path, method="rosa", rank=4, seed=100, config={"output.search": True})
    for rate in (0.1, 0.2):
        config = {"output.search": True, "train.lr": rate}
        write_run(tmp_path, method="rosa", rank=4, seed=100, status="failed", config=config)
    (data,) = load_plot_data(tmp_path)
    assert set(lines(plots()["lr_curves"].draw(data))) == {"LoRA"}
    assert "gpt2: lr_curves shows no line of ROSA 4, whose trials finished at one rate only" in data.notes


def test_variants_and_ranks_are_lines_of_their_own(tmp_path: Path) -> None:
    search(tmp_path, "rosa", 4)
    search(tmp_path, "rosa", 4, 0.2, **{"fnmodel.rosa.sample_method": "bottom"})
    search(tmp_path, "rosa", 8, 0.3)
    search(tmp_path, "lora", 8, 0.4, **{"train.batch_size": 8})
    assert set(texts(figure_of("lr_curves", tmp_path))) == {
        "ROSA 4 random", "ROSA 4 bottom", "ROSA 8", "LoRA 8",
    }, "nothing is chosen yet"  # fmt: skip


def test_lines_of_one_method_and_rank_look_and_read_differently(tmp_path: Path) -> None:
    for rate in (1e-3, 3e-3):
        for bias, batch in (("none", 8), ("none", 16), ("adapted", 8)):
            config = {"train.lr": rate, "fnmodel.params.bias": bias, "train.batch_size": batch}
            write_run(tmp_path, method="lora", loss=1.0, config=config, record={"bias": bias})
    figure = figure_of("lr_curves", tmp_path)
    drawn = [line for line in figure.legends[0].get_lines() if line.get_marker() != "*"]
    assert len({(line.get_color(), str(line._dash_pattern), line.get_marker()) for line in drawn}) == 3
    assert set(texts(figure)) == {
        "LoRA batch_size 8 biases none", "LoRA batch_size 16 biases none", "LoRA batch_size 8 biases adapted",
        "lowest, at the end of the rates",
    }  # fmt: skip


def test_a_grid_without_a_search_is_shown_with_its_lowest_mean(tmp_path: Path) -> None:
    for rate, losses in {1e-3: (1.0, 1.2), 3e-3: (0.9, 1.1), 1e-2: (1.3, 1.5)}.items():
        for seed, loss in enumerate(losses):
            write_run(tmp_path, seed=seed, loss=loss, config={"train.lr": rate})
    figure = figure_of("lr_curves", tmp_path)
    assert lines(figure)["ROSA"][1] == pytest.approx([1.1, 1.0, 1.4])
    assert error_bars(figure, "ROSA") == pytest.approx([0.02**0.5] * 3)
    assert stars(figure) == [(3e-3, pytest.approx(1.0))] and texts(figure) == ["ROSA", "lowest"]
    (star,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    write_run(tmp_path, loss=0.1, config={"train.lr": 3e-2})
    figure = figure_of("lr_curves", tmp_path)
    (beyond,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert stars(figure)[0][0] == 3e-2 and beyond.get_markerfacecolor() != star.get_markerfacecolor()


def test_one_rate_is_no_curve_and_trials_are_in_no_other_figure(tmp_path: Path) -> None:
    write_run(tmp_path, loss=2.0)
    with pytest.raises(NothingToDraw, match=r"differ in train\.lr only"):
        figure_of("lr_curves", tmp_path)
    search(tmp_path, "rosa", 4)
    assert lines(figure_of("parameters", tmp_path, "val_loss"))["ROSA"][1] == [2.0]
    compile_results([tmp_path])
