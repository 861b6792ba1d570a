"""What a reader of a table must not misunderstand: untrained models, differences, captions, and paths in files."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from tests.records import DECODING, csv_of, markdown_rows, row_of, write_run
from utils.tables import compile_results


def test_the_untrained_model_is_never_best_and_has_no_deviation_and_no_parameters(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, method="none", epochs=0, seed=seed, loss=4.0, scores={"NIST": 9.9, "BLEU": 0.1})
        write_run(tmp_path, method="none", seed=seed, loss=1.0 + seed / 10, scores={"NIST": 8.0, "BLEU": 0.6})
        write_run(tmp_path, seed=seed, loss=2.0, scores={"NIST": 7.0, "BLEU": 0.5})
    compile_results([tmp_path])
    untrained, full, rosa = markdown_rows(tmp_path)
    assert (untrained["NIST"], full["NIST"], rosa["NIST"]) == ("9.9000", "**8.0000** ± 0.0000", "7.0000 ± 0.0000")
    assert (untrained["params"], untrained["n"], untrained["val loss"]) == ("0", "–", "4.0000")
    row = row_of(csv_of(tmp_path), method="untrained")
    assert row.parameters_trainable == 0 and math.isnan(row.NIST_std) and row.n == 2
    assert row_of(csv_of(tmp_path), method="none").parameters_trainable == 124_000_000


def test_differences_to_a_method_with_ranks_are_to_the_same_rank_only(tmp_path: Path) -> None:
    write_run(tmp_path, method="none", loss=0.9)
    write_run(tmp_path, method="none", loss=4.0, epochs=0)
    write_run(tmp_path, method="lora", rank=0.05, loss=1.2)
    write_run(tmp_path, method="rosa", rank=0.05, loss=1.1)
    write_run(tmp_path, method="rosa", rank=0.1, loss=1.0)
    compile_results([tmp_path], baseline="lora")
    frame = csv_of(tmp_path)
    assert row_of(frame, method="rosa", rank="0.05").val_loss_delta == pytest.approx(-0.1)
    for others in ({"method": "none"}, {"method": "untrained"}, {"method": "rosa", "rank": "0.1"}):
        row = row_of(frame, **others)
        assert math.isnan(row.val_loss_delta) and pd.isna(row.baseline)
    second = (
        (tmp_path / "e2e_nlg" / "results.md")
        .read_text(encoding="utf-8")
        .split("## difference to LoRA of the same rank")[1]
        .split("## ")[0]
    )
    assert [line.split(" | ")[0] for line in second.splitlines() if line.startswith("| ")][2:] == ["| ROSA"]


def test_the_caption_explains_what_the_table_shows(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, rank=0.05, scores={"SER": 0.1})
        write_run(tmp_path, method="lora", seed=seed, rank=8, loss=0.9, record={"bias": "adapted"})
    compile_results([tmp_path])
    header = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").split("\n\n")[1].splitlines()[0]
    assert "val loss ↓" in header and "BLEU ↑" in header and "slot error ↓" in header and "train (s) ↓" in header
    latex = (tmp_path / "e2e_nlg" / "results.tex").read_text(encoding="utf-8")
    assert r"BLEU $\uparrow$" in latex and r"slot error $\downarrow$" in latex
    caption = next(line for line in latex.splitlines() if line.startswith(r"\caption"))
    for words in (
        r"Mean $\pm$ sample standard deviation over n seeds.",
        "an integer is the rank R, a fraction the ratio of the rank R to the smaller side of each adapted weight.",
        "Trained biases: adapted.",
        "params: trainable parameters.",
        r"$\uparrow$: higher is better, $\downarrow$: lower is better.",
        "Loss in nats per token.",
        "slot error: missing, added and wrong slots over all slots of the inputs.",
        "Decoding: beams 10, length penalty 0.8, no repeat ngram size 4, max new tokens 128.",
        r"Bold: best in its column, and $\pm$ does not overlap the next.",
    ):
        assert words in caption, words
    write_run(tmp_path, evaluation={"decoding": {**DECODING, "num_beams": 1}}, seed=2)
    compile_results([tmp_path])  # a setting that differs is in a column and not in the caption
    assert "Decoding: length penalty 0.8" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert {row["beams"] for row in markdown_rows(tmp_path)} == {"1", "10"}


def test_files_have_no_folders_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", seed=0)
    write_run(tmp_path / "b", seed=0)
    write_run(
        tmp_path / "b", seed=1, record={"error": "no file '/home/me/data.csv', https://x.org/a/b"}, status="failed"
    )
    broken = write_run(tmp_path / "b", seed=2, record={"group": None})
    (broken / "eval.json").write_text("{", encoding="utf-8")
    compile_results([tmp_path])
    for file in tmp_path.glob("results.*"):
        text = file.read_text(encoding="utf-8").replace("\\", "")
        assert str(tmp_path) not in text and "/home" not in text, file
    markdown = (tmp_path / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert "- b/e2e_nlg/label-" in markdown and "'…/data.csv', https://x.org/a/b" in markdown
    assert str(broken) in capsys.readouterr().out  # the terminal shows the whole path


def test_a_difference_that_rounds_to_zero_has_no_sign(tmp_path: Path) -> None:
    write_run(tmp_path, method="none", loss=1.0)
    write_run(tmp_path, loss=0.99999)
    compile_results([tmp_path], columns=["val_loss"])
    assert "| 0.0000 |" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").split("## difference")[1]


def test_settings_without_a_column_are_named_if_they_are_not_at_their_defaults(tmp_path: Path) -> None:
    """How long and at which rate rows were trained is always named."""
    write_run(tmp_path, method="lora", config={"fnmodel.lora.alpha": 64, "fnmodel.lora.dropout": 0.0})
    write_run(tmp_path, config={"fnmodel.rosa.level": "never", "fnmodel.rosa.decay": True})
    compile_results([tmp_path])
    caption = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    shared = "The same for all rows: train.epochs=5, train.batch_size=128, train.lr=0.001"
    assert f"{shared}, fnmodel.rosa.level=never, fnmodel.rosa.decay=true, fnmodel.lora.alpha=64.\n" in caption
    write_run(tmp_path, config={"fnmodel.rosa.level": "epoch"})
    compile_results([tmp_path])  # now it has a column
    caption = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert f"{shared}, fnmodel.rosa.decay=true, fnmodel.lora.alpha=64.\n" in caption


def test_what_a_reader_must_know_of_the_data_is_in_the_caption(tmp_path: Path) -> None:
    """Fractions, test samples that were trained on, and what ± is over."""
    for seed in (0, 1):
        config = {"train.fraction": 0.05, "train.validation_fraction": 0.1}
        write_run(tmp_path, seed=seed, config=config, evaluation={"known": "3 of 9 test samples are training samples"})
    compile_results([tmp_path])
    caption = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert "train.fraction=0.05, train.validation_fraction=0.1." in caption
    assert "± of a validation loss is over seeds and parts" in caption
    assert "3 of 9 test samples are training samples.\n" in caption
    compile_results([tmp_path], columns=["BLEU"])
    assert "seeds and parts" not in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
