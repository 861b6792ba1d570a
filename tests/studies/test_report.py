"""The tables of a study, from its records, and its sweep file."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from studies import report
from studies.capacity import figure
from tests.conftest import ROOT
from utils.config.fnmodel import LAYERS_ONLY
from utils.errors import UserError
from utils.io.archives import unpacked
from utils.results.methods import method_label
from utils.slurm import commands
from utils.slurm.sweep.file import load_sweep


def write_record(
    folder: Path,
    method: str,
    lr: float,
    seed: int,
    loss: float,
    trial: bool = False,
    rank: float = 1,
    dataset: str = "phone_book",
    gain: float | None = 1.5,  # a setting that is gone, as old records have
    train: dict[str, Any] | None = None,
) -> None:
    """A record of four pairs with 44 target tokens."""
    folder.mkdir(parents=True)
    data = {"validation": {"samples": 4, "target_tokens": 44}}
    record: dict[str, Any] = {"status": "finished", "dataset": dataset, "model": "base", "method": method}
    record |= {
        "seed": seed,
        "group": "g",
        "rank": None if method == LAYERS_ONLY else rank,
        "data": data,
        "best": {"loss": loss, "loss_target": loss},
    }
    (folder / "run.json").write_text(json.dumps(record | {"parameters": {"trainable": 4096}}))
    given = {"lr": lr, "epochs": 10, **(train or {})}
    settings: dict[str, Any] = {"dataset": {"size": 4}, "train": given, "output": {"search": trial}}
    settings["fnmodel"] = {"rosa": {"level": "step", "every": 100, **({"gain": gain} if gain else {})}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def test_the_tables_choose_a_rate_and_show_each_seed(tmp_path: Path) -> None:
    for number, (lr, loss) in enumerate([(0.01, 1.5), (0.015, 1.0), (0.0225, 1.6)]):
        write_record(tmp_path / f"search-{number}", "lora", lr, 100, loss, trial=True)
    write_record(tmp_path / "worse", "lora", 0.01, 0, 1.5)
    write_record(tmp_path / "search-3", "rosa", 0.01, 100, 0.5, trial=True)
    for seed, loss in enumerate([1.0, 0.9]):
        write_record(tmp_path / f"seed-{seed}", "lora", 0.015, seed, loss)
    bits = [4 * 10 * math.log2(10) - loss * 44 / math.log(2) for loss in (1.5, 1.0, 1.6, 0.5, 0.9)]
    text = report.report(tmp_path)
    assert f"| 4 | LoRA r=1 | {bits[0]:.0f} | **{bits[1]:.0f}** | {bits[2]:.0f} |" in text
    assert f"| 4 | ROSA r=1, every 100 steps, gain=1.5 | **{bits[3]:.0f}** (end) |  |  |" in text
    assert f"| 4 | LoRA r=1 | 4,096 | 0.015 | {bits[1]:.0f} {bits[4]:.0f} | {(bits[1] + bits[4]) / 2:.0f} |" in text
    write_record(tmp_path / "full", LAYERS_ONLY, 0.001, 0, 0.2)
    assert "| ROSA" not in report.report(tmp_path).split("Reported seeds")[1]
    write_record(tmp_path / "rosa", "rosa", 0.01, 0, 0.5)
    assert f"| {(1 - 0.5) / (1 - 0.2):.0%} |" in report.report(tmp_path)  # of losses, over seed 0, which all three have
    write_record(tmp_path / "near", LAYERS_ONLY, 0.0015, 0, 0.9995)
    write_record(tmp_path / "far", LAYERS_ONLY, 0.001, 1, 2.0)  # so that .0015 is the better rate
    assert "| no gap |" in report.report(tmp_path)
    for name in ("near", "far"):
        shutil.rmtree(tmp_path / name)
    write_record(tmp_path / "plain", "rosa", 0.01, 0, 0.5, gain=None)
    axes = figure.draw(report.load(tmp_path)).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["LoRA, rank 1"].get_ydata() == pytest.approx([(bits[1] + bits[4]) / 2 / 1000] * 2)  # at its best rate
    points = lines["ROSA, rank 1, resampled"]
    assert [name for name in lines if name.startswith("ROSA")] == ["ROSA, rank 1, resampled"]  # variants are not drawn
    assert points.get_xdata() == [100] and points.get_ydata() == pytest.approx([bits[3] / 1000])
    (tmp_path / "seed-0" / "run.json").write_text('{"status": "finished", "dataset": "e2e_nlg"}')
    with pytest.raises(UserError, match="is not a finished run of a study"):
        report.report(tmp_path)


def test_other_data_are_shown_by_their_loss(tmp_path: Path) -> None:
    write_record(tmp_path / "search", "lora", 0.01, 100, 1.2, trial=True, dataset="e2e_nlg")
    for seed, loss in enumerate([1.1, 1.3]):
        write_record(tmp_path / f"lora-{seed}", "lora", 0.01, seed, loss, dataset="e2e_nlg")
    measured = {"english": {"loss": 3.5}, "change": {"layers": {"a": {"rank": 2, "effective_rank": 1.5}}}}
    (tmp_path / "lora-0" / "study.json").write_text(json.dumps(measured))
    assert "after the runs of the search" not in report.report(tmp_path)
    write_record(tmp_path / "low", "lora", 0.001, 100, 1.4, trial=True, dataset="e2e_nlg")
    (tmp_path / "low" / "study.json").write_text('{"english": {"loss": 2.5}}')
    text = report.report(tmp_path)
    forgotten = text.split("Loss on English after the runs of the search")[1].split("Reported seeds")[0]
    assert "| LoRA r=1 | 2.50 |  (end) |" in forgotten  # the chosen one was not measured
    assert "Losses in the search" in text and "| LoRA r=1 | 1.4000 | **1.2000** (end) |" in text
    assert "loss of each seed" in text
    assert "| LoRA r=1 | 4,096 | 0.01 | 1.1000 1.3000 | 1.2000 | 3.50 (1 of 2) | 2.0 (1 of 2) | 1.5 (1 of 2) |" in text
    assert "written whole" not in text and "Before training" not in text
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "study.json").write_text('{"english": {"loss": 2.25}}')
    assert "Before training the loss on English is 2.2500." in report.report(tmp_path)


def test_what_is_left_of_book_a_and_of_each_draw_is_shown(tmp_path: Path) -> None:
    for lr, share in ((0.01, 0.5), (0.015, 0.0)):
        write_record(tmp_path / f"{lr}", "rosa", lr, 100, 1.0 + lr, trial=True)
        study = {"book_a": {"loss": 2.0, "exact_match": share}}
        (tmp_path / f"{lr}" / "study.json").write_text(json.dumps(study))
    for seed, kept in ((3, [0.25, 1.2, 0.5, 1.0]), (2, [0.5])):
        write_record(tmp_path / f"seed-{seed}", "rosa", 0.01, seed, 1.0)
        (tmp_path / f"seed-{seed}" / "draws.json").write_text(json.dumps({"kept": kept}))
    tables = report.report(tmp_path).split("Numbers of A written whole")[1]
    assert "| 4 | ROSA r=1, every 100 steps, gain=1.5 | **50%** (end) | 0% |" in tables
    assert "| ROSA r=1, every 100 steps, gain=1.5 | 3 | 4 | 25% | 50% | 0.75 |" in tables
    assert "| ROSA r=1, every 100 steps, gain=1.5 | 2 | 1 | 50% |  | 0.50 |" in tables
    (tmp_path / "0.01" / "study.json").write_text('{"book_a": {"loss": 2.0, "exact_match": 0.001}}')
    assert "written whole" not in report.report(tmp_path)


def test_the_full_rank_is_not_rank_1(tmp_path: Path) -> None:
    write_record(tmp_path / "ratio", "lora", 0.01, 0, 1.2, rank=1.0)
    write_record(tmp_path / "one", "lora", 0.01, 0, 1.5)
    for loss, label in ((1.2, "LoRA, rank=1.0"), (1.5, "LoRA r=1")):
        bits = 4 * 10 * math.log2(10) - loss * 44 / math.log(2)
        assert f"| 4 | {label} | 4,096 | 0.01 | {bits:.0f} |" in report.report(tmp_path)


def test_runs_that_differ_in_what_the_tables_do_not_show_are_refused(tmp_path: Path) -> None:
    """As those of another number of epochs do; they would be averaged as further seeds."""
    write_record(tmp_path / "short", "lora", 0.01, 0, 1.2)
    write_record(tmp_path / "trial", "lora", 0.01, 0, 1.2, trial=True)
    report.report(tmp_path)
    write_record(tmp_path / "long", "lora", 0.01, 0, 0.6)
    with pytest.raises(UserError, match=r"(short|long) and .* differ in nothing that the tables show"):
        report.report(tmp_path)


@pytest.mark.parametrize(
    ("seed", "trial", "changed"),
    [
        (1, False, {"group": "h"}),  # averaged with seed 0
        (1, True, {}),  # a second trial of one rate
    ],
)
def test_other_seeds_of_other_settings_are_refused(
    tmp_path: Path, seed: int, trial: bool, changed: dict[str, Any]
) -> None:
    write_record(tmp_path / "one", "lora", 0.01, 0, 1.2, trial=trial)
    write_record(tmp_path / "two", "lora", 0.01, seed, 1.2, trial=trial)
    if not trial:
        report.report(tmp_path)
    record = tmp_path / "two" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | changed))
    with pytest.raises(UserError, match="differ in nothing that the tables show"):
        report.report(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", 20), ("optimizer", "sgd"), ("validation_fraction", 0.1), ("weight_decay", 0.5)],
)
def test_methods_are_compared_with_the_same_training_only(tmp_path: Path, key: str, value: object) -> None:
    """Not steps: seeds that draw a part of the documents have about as many."""
    write_record(
        tmp_path / "lora",
        "lora",
        0.01,
        0,
        1.2,
        train={"optimizer": "adamw", "weight_decay": 0.0, "validation_fraction": 1.0},
    )
    write_record(tmp_path / "rosa", "rosa", 0.01, 0, 1.2)
    report.report(tmp_path)
    write_record(tmp_path / "other", "relora", 0.01, 0, 1.2, train={key: value})
    with pytest.raises(UserError, match=rf"differ in train\.{key}, which no table shows"):
        report.report(tmp_path)


def test_methods_are_compared_on_one_data_set_only(tmp_path: Path) -> None:
    write_record(tmp_path / "lora", "lora", 0.01, 0, 1.2, dataset="e2e_nlg")
    write_record(tmp_path / "rosa", "rosa", 0.01, 0, 1.2, dataset="eli5")
    with pytest.raises(UserError, match="differ in data set, which no table shows"):
        report.report(tmp_path)


def test_the_gap_counts_from_lora_of_the_rows_own_rank(tmp_path: Path) -> None:
    """Where no other method has LoRA's rank, it counts from the smallest rank that both have."""
    runs = [("lora", 1.0, 8), ("lora", 3.0, 1), ("lora", 0.9, 64), ("rosa", 1.1, 8), (LAYERS_ONLY, 0.8, 0)]

    def shares(line: str) -> list[str]:
        """What each row closes, in the order of ``runs``, and the line below."""
        for method, loss, rank in runs:
            if not (folder := tmp_path / f"{method}{rank}").exists():
                write_record(folder, method, 0.01, 0, loss, rank=rank)
        text = report.report(tmp_path)
        assert f"\nGap closed: from LoRA of {line} to full training of the same layers. In brackets" in text
        starts = ["full" if method == LAYERS_ONLY else f"{method_label(method)} r={rank}" for method, _, rank in runs]
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| 4 | ")]
        return [next(row[6] for row in rows if row[1].startswith(start)) for start in starts]

    assert shares("r=8 (4 keys)") == ["0%", "-1000%", "50%", "-50%", "100%"]
    runs.append(("rosa", 1.9, 1))
    line = "r=1 (4 keys), r=8 (4 keys, methods of rank 8 but LoRA)"
    assert shares(line) == ["91%", "0%", "95%", "-50%", "100%", "50%"]


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob("studies/*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_every_sweep_of_a_study_can_be_sent(file: Path) -> None:
    assert load_sweep(file, commands.sending_problems).jobs


def test_the_scores_of_each_seed_are_those_of_their_files() -> None:
    records = ROOT / "studies" / "pretrained" / "records-e2e"
    rows = report.report(records).split("Scores of each seed")[1].split("\n\n")[1].splitlines()[2:]
    scores = [json.loads(file.read_text())["test"] for file in unpacked(records).glob("*/scores.json")]
    assert len(scores) == 3 * len(rows) >= 18
    for place, name in enumerate(report.SCORES, 3):
        shown = sorted(float(score) for row in rows for score in row.split("|")[place].split())
        assert shown == sorted(round(one[name], 4) for one in scores)


def test_tables_replace_those_between_the_marks_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(tmp_path / "records" / "one", "lora", 0.01, 0, 1.5)
    page, part = tmp_path / "README.md", report.PART.format("records")
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "records"), "--page"])
    for text in (f"a {begin} b", f"{end} {begin}", f"{begin} {begin} {end}", f"{end} {begin} {end}"):
        page.write_text(text)
        with pytest.raises(UserError, match=r"README\.md: the page needs .*'<!-- records by .*' and '<!-- end of"):
            report.main()
        assert page.read_text() == text
    page.write_text(f"above\n\n{begin}\nold\n{end}\nbelow\n")
    report.main()
    assert page.read_text() == f"above\n\n{begin}\n\n{report.report(tmp_path / 'records')}\n\n{end}\nbelow\n"
    page.unlink()
    with pytest.raises(UserError, match=r"README\.md cannot be read: No such file"):
        report.main()
