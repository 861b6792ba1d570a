"""Which runs and points a figure is drawn from, and what it says of those that it leaves out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.plots.test_plots import figure_of, lines, texts
from tests.records import write_run
from utils.plots._curves import draw_curves
from utils.plots._data import load_plot_data


def test_a_setting_is_chosen_by_the_loss_that_all_runs_share(tmp_path: Path) -> None:
    """Of two LoRA settings that were trained on different tokens, not by each one's own loss."""
    for lr, tokens, loss in ((1e-2, "target", 1.0), (1e-4, "all", 0.9)):
        record = {"loss_on": tokens, "best": {"loss": loss, "loss_target": 1.0 if lr == 1e-2 else 1.2}}
        write_run(tmp_path, method="lora", record=record, config={"train.lr": lr, "train.loss_on": tokens})
    (data,) = load_plot_data(tmp_path)
    (row,) = data.trained()
    assert row.settings["train.lr"] == 1e-2


def test_a_setting_with_more_seeds_is_chosen_before_a_lucky_run_and_the_note_names_its_biases(tmp_path: Path) -> None:
    for seed, loss in ((0, 1.0), (1, 1.1)):
        write_run(tmp_path, method="lora", seed=seed, loss=loss, record={"bias": "adapted", "group": "adapted"})
    write_run(tmp_path, method="lora", loss=0.9, record={"bias": "none", "group": "none"})
    (data,) = load_plot_data(tmp_path)
    assert [row.first.bias for row in data.trained()] == ["adapted"]
    assert data.notes == ["gpt2: LoRA 0.05 has 2 settings; all figures but sampling show biases=adapted"]


def test_a_run_without_the_metric_is_named_and_another_setting_is_shown(tmp_path: Path) -> None:
    write_run(tmp_path)
    bare = [
        write_run(tmp_path, method="lora", loss=0.9, rank=rank, evaluation={"absent": True}) for rank in (0.05, 0.1)
    ]
    write_run(tmp_path, method="lora", loss=1.0, config={"train.lr": 1e-2})
    (data,) = load_plot_data(tmp_path)
    rows = data.having_metric(data.trained())
    assert [(row.first.method, row.first.rank, row.settings["train.lr"]) for row in rows] == [
        ("lora", 0.05, 1e-2),
        ("rosa", 0.05, 1e-3),
    ]
    assert any(note.startswith(f"left out: {bare[1]}: not evaluated") for note in data.notes)


def test_rosa_is_the_one_that_resamples(tmp_path: Path) -> None:
    write_run(tmp_path, loss=1.0, config={"fnmodel.rosa.level": "epoch"})
    write_run(tmp_path, loss=0.9, config={"fnmodel.rosa.level": "never"})
    (data,) = load_plot_data(tmp_path)
    assert [row.settings["fnmodel.rosa.level"] for row in data.trained()] == ["epoch"]


def test_runs_on_other_data_are_left_out_and_named(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, record={"data_sha256": {"validation": "a" * 64}})
    other = write_run(tmp_path, method="lora", record={"data_sha256": {"validation": "b" * 64}})
    (data,) = load_plot_data(tmp_path)
    assert [row.first.method for row in data.rows] == ["rosa"]
    assert data.notes == [f"left out: {other}: its validation data are not those of most runs"]


def test_methods_that_were_not_trained_alike_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, config={"train.lr": 1e-2})
    write_run(tmp_path, method="lora", epochs=1)
    (data,) = load_plot_data(tmp_path)
    data.trained()
    assert data.notes == ["gpt2: methods and ranks were not trained alike: they differ in train.epochs too"]


def test_scores_of_different_decoding_are_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path, method="lora", evaluation={"decoding": {"num_beams": 1}})
    (data,) = load_plot_data(tmp_path, "BLEU")
    assert data.notes == ["gpt2: the texts were generated with num_beams 1 and 10: their BLEU is not comparable"]
    assert load_plot_data(tmp_path)[0].notes == []


def test_two_bases_of_one_name_have_figures_of_their_own(tmp_path: Path) -> None:
    """Also if one of them has trials only."""
    for folder, method in (("first", "lora"), ("second", "rosa")):
        write_run(tmp_path, method=method, model="base", config={"model.name": f"/{folder}/base"})
    trial = {"model.name": "/third/base", "output.search": True}
    write_run(tmp_path, method="lora", model="base", config=trial)
    drawn = load_plot_data(tmp_path)
    assert [data.model for data in drawn] == [f"base ({name}/base)" for name in ("first", "second", "third")]
    assert [data.methods for data in drawn] == [["lora"], ["rosa"], []]


def test_a_row_without_shared_points_is_named_and_a_seed_without_points_not_counted(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        run = write_run(tmp_path, seed=seed)
        if seed == 2:
            (run / "metrics.jsonl").unlink()
    write_run(tmp_path, method="lora")
    lone = write_run(tmp_path, method="lora", seed=1)
    (lone / "metrics.jsonl").write_text('{"split": "validation", "epoch": 0.123, "step": 500, "loss": 1}\n')
    (data,) = load_plot_data(tmp_path)
    drawn = draw_curves(data, "validation", "loss", "loss")
    assert drawn.legends[0].get_title().get_text().endswith("2 seeds") and list(lines(drawn)) == ["ROSA"]
    assert any("LoRA has no validation points that its seeds share" in note for note in data.notes)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "it has no validation points"),
        (lambda text: re.sub(r'(n", "loss": )[\d.]+', r"\1NaN", text), "5 of 5 validation points have no finite loss"),
        (lambda text: text[: text.index('"step": 410')], "end before step 500"),  # four of five epochs
        (lambda text: text[:-20], "line 55 is not JSON"),
    ],
)
def test_a_seed_that_ends_early_is_named_and_not_in_the_curve(tmp_path: Path, damage: Any, words: str) -> None:
    for seed in (0, 1):
        write_run(tmp_path, method="lora", seed=seed)
        file = write_run(tmp_path, seed=seed, loss=1.0 + seed) / "metrics.jsonl"
    file.write_text(damage(file.read_text()))
    (data,) = load_plot_data(tmp_path)
    drawn = draw_curves(data, "validation", "loss", "loss")
    assert texts(drawn) == ["LoRA", "ROSA, 1 of 2 seeds"]
    assert lines(drawn)["ROSA"][0] == [1, 2, 3, 4, 5] and lines(drawn)["ROSA"][1][-1] < 1.1
    assert any(note.startswith(f"{file.parent}: ") and words in note for note in data.notes)


def test_a_bad_line_costs_one_point_of_a_run(tmp_path: Path) -> None:
    file = write_run(tmp_path) / "metrics.jsonl"
    file.write_text(file.read_text().replace('"epoch": 3.0, "split": "validation"', '"epoch": 3.0, "split"'))
    (data,) = load_plot_data(tmp_path)
    assert lines(draw_curves(data, "validation", "loss", "loss"))["ROSA"][0] == [1, 2, 4, 5]
    assert len(data.notes) == 1 and "metrics.jsonl, line 33 is not JSON" in data.notes[0]


def test_seeds_logged_at_other_intervals_share_the_bins_of_a_training_curve(tmp_path: Path) -> None:
    for seed, step in ((0, 1), (1, 20)):
        run = write_run(tmp_path, seed=seed)
        points = [f'{{"split": "train", "epoch": {i / 100}, "step": {i}, "loss": 1}}' for i in range(step, 201, step)]
        (run / "metrics.jsonl").write_text("\n".join(points))
    x, y = lines(figure_of("training_curves", tmp_path))["ROSA"]
    assert len(x) == 10 and set(y) == {1}
