"""Rows of a table: how runs are grouped, averaged and named. Each number is compared with an own computation."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pandas as pd
import pytest

from tests.records import DECODING, csv_of, latex_rows, markdown_rows, row_of, write_run
from utils.tables import compile_results


def test_mean_std_and_n_over_seeds(tmp_path: Path) -> None:
    losses = [1.0, 1.25, 1.75]
    for seed, loss in enumerate(losses):
        write_run(tmp_path, seed=seed, loss=loss, scores={"BLEU": 0.6 + seed / 50})
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert row.n == 3 and row.seeds == "0 1 2"
    assert row.val_loss_mean == pytest.approx(sum(losses) / 3, abs=1e-15)
    assert row.val_loss_std == pytest.approx(math.sqrt(sum((x - 4 / 3) ** 2 for x in losses) / 2), rel=1e-12)
    perplexities = [math.exp(loss + 0.1) for loss in losses]  # the mean of perplexities, not of losses
    assert row.test_perplexity_mean == pytest.approx(statistics.fmean(perplexities), rel=1e-12)
    assert row.BLEU_std == pytest.approx(0.02, rel=1e-9)
    assert row.parameters_trainable == 5_700_000
    printed = markdown_rows(tmp_path)[0]
    assert printed["val loss"] == "1.3333 ± 0.3819"
    assert printed["BLEU"] == "0.6200 ± 0.0200"
    assert printed["n"] == "3" and printed["params"] == "5.7M"
    assert r"1.3333 {\scriptsize $\pm$ 0.3819}" in latex_rows(tmp_path)[0]


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path)
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert math.isnan(row.val_loss_std) and row.val_loss_n == 1
    assert markdown_rows(tmp_path)[0]["val loss"] == "1.0000"


def test_rows_are_grouped_by_settings_and_the_differing_ones_are_columns(tmp_path: Path) -> None:
    for lr in (1e-3, 1e-5):
        for seed in (0, 1):
            write_run(tmp_path, seed=seed, loss=1 + lr, config={"train.lr": lr})
    write_run(tmp_path, method="lora", config={"fnmodel.rosa.sample_method": "bottom"})  # LoRA does not read this
    write_run(tmp_path, config={"fnmodel.rosa.sample_method": "bottom"})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert sorted(frame.n) == [1, 1, 2, 2]
    assert row_of(frame, **{"train.lr": 1e-5}).val_loss_mean == pytest.approx(1.00001)
    lora = row_of(frame, method="lora")
    assert pd.isna(lora["fnmodel.rosa.sample_method"])
    assert set(frame["fnmodel.rosa.sample_method"].dropna()) == {"random", "bottom"}
    assert "fnmodel.lora.alpha" not in frame  # the same in all rows
    printed = markdown_rows(tmp_path)
    assert {row["lr"] for row in printed} == {"0.001", "1e-05"}
    assert next(row for row in printed if row["method"] == "LoRA")["sample method"] == "–"


def test_rank_1_and_ratio_1_are_different_rows(tmp_path: Path) -> None:
    write_run(tmp_path, rank=1)
    write_run(tmp_path, rank=1.0)
    compile_results([tmp_path])
    assert sorted(csv_of(tmp_path)["rank"]) == ["1", "1.0"]
    assert sorted(row["rank"] for row in markdown_rows(tmp_path)) == ["1", "1.0"]


def test_rows_that_look_the_same_show_their_group_hash(tmp_path: Path) -> None:
    for group in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        write_run(tmp_path, record={"group": group})
    compile_results([tmp_path])
    assert [row["settings"] for row in markdown_rows(tmp_path)] == ["aaaaaaaa", "bbbbbbbb"]


def test_untrained_base_is_not_full_fine_tuning(tmp_path: Path) -> None:
    write_run(tmp_path, method="none", epochs=0, loss=4.0)
    write_run(tmp_path, method="none", loss=1.0)
    write_run(tmp_path, method="rosa", loss=1.5)
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert row_of(frame, method="untrained").n == 1 and row_of(frame, method="none").n == 1
    assert row_of(frame, method="rosa").val_loss_delta == pytest.approx(0.5)
    assert markdown_rows(tmp_path)[0]["train (s)"] == "–"  # no training must not be the fastest training


def test_a_seed_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", seed=0, loss=1.0)
    write_run(tmp_path / "a", seed=1, loss=2.0)
    write_run(tmp_path / "b", seed=1, loss=2.0)
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path, "."))  # the runs' common folder
    assert row.n == 2 and row.val_loss_mean == pytest.approx(1.5)
    assert "counted once" in capsys.readouterr().out


def test_runs_with_different_decoding_are_different_rows(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, scores={"BLEU": 0.6})
    write_run(tmp_path, seed=1, scores={"BLEU": 0.3}, evaluation={"decoding": {**DECODING, "num_beams": 1}})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert row_of(frame, **{"decoding.num_beams": 1}).BLEU_mean == 0.3
    assert row_of(frame, **{"decoding.num_beams": 10}).BLEU_mean == 0.6
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert "**" not in "".join(row["BLEU"] for row in markdown_rows(tmp_path))
    assert "Rows with different decoding beams are not compared" in page


def test_starts_are_told_apart_by_what_they_hold_and_not_by_their_path(tmp_path: Path) -> None:
    for method, path, digest in (("lora", "/a", "a"), ("rosa", "/b", "a"), ("dora", "/a", "b")):
        record = {"adapter_sha256": digest * 64}
        write_run(tmp_path, method=method, config={"model.adapter": path}, record=record)
    compile_results([tmp_path])
    assert [row["adapter"] for row in markdown_rows(tmp_path)] == ["a" * 8, "b" * 8, "a" * 8]


def test_a_model_of_the_hub_and_a_folder_of_its_name_are_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, method="lora")
    write_run(tmp_path, config={"model.name": "/models/gpt2"}, record={"model": "/models/gpt2"})
    compile_results([tmp_path])
    assert [row["base"] for row in markdown_rows(tmp_path)] == ["by name", "a folder"]


def test_seeds_trained_by_different_code_are_named(tmp_path: Path) -> None:
    for seed, commit in enumerate(("a" * 40, "b" * 40)):
        write_run(tmp_path, seed=seed, record={"git_commit": commit})
        write_run(tmp_path, seed=seed, method="lora", record={"git_commit": "a" * 40 if seed else None})
    compile_results([tmp_path])
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert "Seeds of one row were trained by different code (git_commit in run.json): ROSA 0.05." in page


def test_seeds_that_auto_gave_other_precisions_are_other_rows(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, loss=1.0, config={"train.precision": "auto"})
    bf16 = {"hardware": {"name": "a GPU", "precision": "bf16"}}
    write_run(tmp_path, seed=1, loss=2.0, config={"train.precision": "auto"}, record=bf16)
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    losses = {row["train.precision"]: (row["n"], row["val_loss_mean"]) for _, row in frame.iterrows()}
    assert losses == {"fp32": (1, 1.0), "bf16": (1, 2.0)}


def test_seeds_that_did_without_updates_are_named(tmp_path: Path) -> None:
    for seed, skipped in enumerate((0, 5, 40)):
        write_run(tmp_path, seed=seed, record={"skipped_updates": skipped})
    compile_results([tmp_path])
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert "Updates left out, as their gradients were infinite or not a number: ROSA 0.05, seed 2: 40 of 500." in page


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", True, {}])
def test_missing_and_invalid_values_are_left_out(tmp_path: Path, value: object) -> None:
    record = {
        "best": {"loss": value},
        "timings": value,
        "parameters": None,
        "hardware": None,
        "rank": None,
        "bias": None,
    }
    run = write_run(tmp_path, record={**record, "group": "g"}, scores={"BLEU": value})
    (run / "config.yaml").unlink()
    write_run(tmp_path, method="lora", loss=1.0)
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path), method="rosa")
    assert math.isnan(row.val_loss_mean) and row.val_loss_n == 0 and math.isnan(row.BLEU_mean)
    assert row.NIST_mean == 8.5
    assert markdown_rows(tmp_path)[1]["val loss"] == "–"
