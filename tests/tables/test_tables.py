"""Tables: every number is read back from the written files and held against an own computation."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.records import DECODING, csv_of, latex_rows, markdown_rows, row_of, write_run
from utils.errors import UserError
from utils.tables import compile_results

ROOT = Path(__file__).parents[2]


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
    write_run(tmp_path, method="lora", config={"fnmodel.rosa.sample_method": "bottom"})  # means nothing to LoRA
    write_run(tmp_path, config={"fnmodel.rosa.sample_method": "bottom"})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert sorted(frame.n) == [1, 1, 2, 2]
    assert row_of(frame, **{"train.lr": 1e-5}).val_loss_mean == pytest.approx(1.00001)
    lora = row_of(frame, method="lora")
    assert pd.isna(lora["fnmodel.rosa.sample_method"])
    assert set(frame["fnmodel.rosa.sample_method"].dropna()) == {"random", "bottom"}
    assert "fnmodel.lora.alpha" not in frame  # the same everywhere
    printed = markdown_rows(tmp_path)
    assert {row["lr"] for row in printed} == {"0.001", "1e-05"}
    assert next(row for row in printed if row["method"] == "LoRA")["sample method"] == "–"


def test_rank_one_and_ratio_one_stay_apart(tmp_path: Path) -> None:
    write_run(tmp_path, rank=1)
    write_run(tmp_path, rank=1.0)
    compile_results([tmp_path])
    assert sorted(csv_of(tmp_path)["rank"]) == ["1", "1.0"]
    assert sorted(row["rank"] for row in markdown_rows(tmp_path)) == ["1", "1.0"]


def test_rows_that_nothing_visible_tells_apart_are_named_by_their_hash(tmp_path: Path) -> None:
    for group in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        write_run(tmp_path, record={"group": group})
    compile_results([tmp_path])
    assert [row["settings"] for row in markdown_rows(tmp_path)] == ["aaaaaaaa", "bbbbbbbb"]


def test_best_is_bold_in_the_right_direction(tmp_path: Path) -> None:
    write_run(tmp_path, method="lora", loss=1.5, scores={"BLEU": 0.70, "SER": 0.02})
    write_run(tmp_path, method="rosa", loss=1.2, scores={"BLEU": 0.60, "SER": 0.05})
    write_run(tmp_path, method="rosa", rank=0.1, loss=1.9, scores={"BLEU": 0.699999, "SER": 0.03})
    compile_results([tmp_path])
    lora, small, large = markdown_rows(tmp_path)
    assert (lora["val loss"], small["val loss"], large["val loss"]) == ("1.5000", "**1.2000**", "1.9000")
    assert (lora["slot error"], small["slot error"]) == ("**0.0200**", "0.0500")
    assert (lora["BLEU"], small["BLEU"], large["BLEU"]) == ("**0.7000**", "0.6000", "**0.7000**")  # equal as printed
    assert "**" not in lora["params"] + small["params"] + lora["n"]
    assert r"\textbf{1.2000}" in latex_rows(tmp_path)[1] and "1.5000" in latex_rows(tmp_path)[0]


def test_scores_shown_are_those_of_the_data_set(tmp_path: Path) -> None:
    more = {"distinct_1": 0.5, "length_ratio": 1.25, "of_a_plug_in": 3.0, "items": 630}
    write_run(tmp_path, dataset="eli5", scores=more)
    write_run(tmp_path, dataset="gone", scores=more)
    compile_results([tmp_path])
    (own,), (other,) = markdown_rows(tmp_path, "eli5"), markdown_rows(tmp_path, "gone")
    official = {"BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr"}
    assert official & own.keys() == {"ROUGE-L"} and (own["distinct 1"], own["length ratio"]) == ("0.5000", "1.2500")
    assert official <= other.keys() and not {"distinct 1", "length ratio", "of a plug in"} & other.keys()
    for dataset in ("eli5", "gone"):  # what was scored is in the CSV all the same
        frame = csv_of(tmp_path, dataset)
        assert (frame.BLEU_mean[0], frame.of_a_plug_in_mean[0]) == (0.65, 3.0)
        assert "items_mean" not in frame


def test_nothing_is_best_alone_or_across_models(tmp_path: Path) -> None:
    write_run(tmp_path, model="gpt2", loss=1.0)
    write_run(tmp_path, model="gpt2-medium", loss=2.0)
    write_run(tmp_path, model="gpt2-medium", method="lora", loss=3.0)
    compile_results([tmp_path])
    printed = markdown_rows(tmp_path)
    assert [row["model"] for row in printed] == ["gpt2", "gpt2-medium", "gpt2-medium"]
    assert [row["val loss"] for row in printed] == ["1.0000", "3.0000", "**2.0000**"]
    assert (tmp_path / "e2e_nlg" / "results.tex").read_text(encoding="utf-8").split(r"\bottomrule")[0].count(
        r"\midrule"
    ) == 2


def test_times_on_different_hardware_have_no_best(tmp_path: Path) -> None:
    write_run(tmp_path, method="lora")
    write_run(tmp_path, seed=7)
    compile_results([tmp_path])
    assert [row["train (s)"] for row in markdown_rows(tmp_path)] == ["**600**", "607"]
    write_run(tmp_path, seed=8, record={"hardware": {"name": "H100", "processes": 2, "precision": "bf16"}})
    compile_results([tmp_path])
    assert [row["train (s)"] for row in markdown_rows(tmp_path)] == ["600", "608 ± 1"]
    assert "H100 × 2, bf16" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")


def test_differences_to_full_fine_tuning_and_to_equal_rank(tmp_path: Path) -> None:
    write_run(tmp_path, method="none", loss=0.9, scores={"BLEU": 0.70})
    for rank, lora, rosa in ((0.05, 1.2, 1.1), (0.1, 1.3, 1.0)):
        write_run(tmp_path, method="lora", rank=rank, loss=lora)
        write_run(tmp_path, method="rosa", rank=rank, loss=rosa, scores={"BLEU": 0.66})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    rosa = row_of(frame, method="rosa", rank="0.1")
    assert rosa.val_loss_delta == pytest.approx(0.1) and rosa.BLEU_delta == pytest.approx(-0.04)
    assert rosa.baseline == row_of(frame, method="none").group
    assert math.isnan(row_of(frame, method="none").val_loss_delta)
    second = (
        (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").split("## difference to full fine-tuning")[1]
    )
    assert "| +0.1000 |" in second and "| −0.0400 |" in second
    compile_results([tmp_path], baseline="lora")
    frame = csv_of(tmp_path)
    assert row_of(frame, method="rosa", rank="0.1").val_loss_delta == pytest.approx(-0.3)
    assert row_of(frame, method="rosa", rank="0.05").val_loss_delta == pytest.approx(-0.1)


def test_untrained_base_is_not_full_fine_tuning(tmp_path: Path) -> None:
    write_run(tmp_path, method="none", epochs=0, loss=4.0)
    write_run(tmp_path, method="none", loss=1.0)
    write_run(tmp_path, method="rosa", loss=1.5)
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert row_of(frame, method="untrained").n == 1 and row_of(frame, method="none").n == 1
    assert row_of(frame, method="rosa").val_loss_delta == pytest.approx(0.5)
    assert markdown_rows(tmp_path)[0]["train (s)"] == "–"  # no training is not the fastest training


def test_a_seed_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", seed=0, loss=1.0)
    write_run(tmp_path / "a", seed=1, loss=2.0)
    write_run(tmp_path / "b", seed=1, loss=2.0)
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path, "."))  # the runs' common folder
    assert row.n == 2 and row.val_loss_mean == pytest.approx(1.5)
    assert "counted once" in capsys.readouterr().out


def test_runs_left_out_are_listed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, loss=1.0)
    reasons = {
        write_run(tmp_path, seed=1, status="failed", record={"error": "out of memory\non GPU"}): "out of memory on GPU",
        write_run(tmp_path, seed=2, status="interrupted"): "interrupted at step 500 of 500",
        write_run(tmp_path, seed=3, status="running"): "running",
        write_run(tmp_path, seed=4, scores={"absent": True}): "not scored",
        write_run(tmp_path, seed=5, evaluation={"absent": True}, scores={"absent": True}): "not evaluated",
        write_run(tmp_path, seed=6, evaluation={"limit": 50}): "the first 50 only",
        write_run(tmp_path, seed=7, scores={"predictions_sha256": "0" * 64}): "stale",
        write_run(tmp_path, seed=8, scores={"predictions_sha256": None}): "does not say which predictions",
        write_run(tmp_path, seed=9, scores={"references_sha256": "0" * 64}): "test_references.txt is missing",
    }
    broken = write_run(tmp_path, seed=10)
    (broken / "run.json").write_text('{"status": "fini', encoding="utf-8")
    reasons[broken] = "cannot be read as JSON"
    truncated = write_run(tmp_path, seed=11)
    (truncated / "scores.json").write_text('{"test": {"BLEU"', encoding="utf-8")
    reasons[truncated] = "scores.json cannot be read"
    compile_results([tmp_path])
    printed = capsys.readouterr().out
    markdown = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    latex = (tmp_path / "e2e_nlg" / "results.tex").read_text(encoding="utf-8")
    for run, reason in reasons.items():
        for text in (printed, markdown, latex):
            assert any(run.name in line and reason in line for line in text.splitlines()), (run.name, reason)
    assert all(line.startswith("%") for line in latex.split("% Not,")[1].splitlines()[1:])
    row = row_of(csv_of(tmp_path))
    assert row.n == 8 and row.val_loss_n == 8  # finished: training values count whether scored or not
    assert row.test_perplexity_n == 6  # seeds 0, 4, 7, 8, 9 and 11 are wholly evaluated
    assert row.BLEU_n == 1
    assert "(1)" in markdown_rows(tmp_path)[0]["BLEU"]


def test_partial_evaluations_alone_are_shown_and_marked(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, loss=1.0, evaluation={"limit": 50})
    write_run(tmp_path, seed=1, loss=2.0, evaluation={"limit": 50})
    write_run(tmp_path, seed=2, loss=9.0, evaluation={"limit": 10})
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert row.val_loss_n == 3 and row.test_loss_n == 2 and row.test_loss_mean == pytest.approx(1.6)
    assert "first 50 items only" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")


def test_a_limit_above_the_split_is_no_limit(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, loss=1.0, evaluation={"limit": 1000, "predictions": 630})
    write_run(tmp_path, seed=1, loss=2.0)
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path)).test_loss_n == 2


def test_scores_of_predictions_that_were_not_evaluated_do_not_count(tmp_path: Path) -> None:
    write_run(tmp_path, evaluation={"predictions_sha256": "0" * 64})
    compile_results([tmp_path])
    assert "BLEU_mean" not in csv_of(tmp_path)
    assert "not those that eval.py wrote" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")


def test_other_decoding_is_another_row(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, scores={"BLEU": 0.6})
    write_run(tmp_path, seed=1, scores={"BLEU": 0.3}, evaluation={"decoding": {**DECODING, "num_beams": 1}})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert row_of(frame, **{"decoding.num_beams": 1}).BLEU_mean == 0.3
    assert row_of(frame, **{"decoding.num_beams": 10}).BLEU_mean == 0.6


def test_losses_on_different_tokens_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, loss=1.0)
    write_run(tmp_path, loss=0.5, record={"loss_on": "all", "group": "other"}, config={"train.loss_on": "all"})
    compile_results([tmp_path])
    printed = markdown_rows(tmp_path)
    assert "val loss" not in printed[0]
    assert sorted(row["val loss, target"] for row in printed) == ["**0.5000**", "1.0000"]
    assert sorted(row["val loss, all"] for row in printed) == ["**0.7500**", "1.5000"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", True, {}])
def test_missing_values_are_tolerated(tmp_path: Path, value: object) -> None:
    holes = {
        "best": {"loss": value},
        "timings": value,
        "parameters": None,
        "hardware": None,
        "rank": None,
        "bias": None,
    }
    run = write_run(tmp_path, record={**holes, "group": "g"}, scores={"BLEU": value})
    (run / "config.yaml").unlink()
    write_run(tmp_path, method="lora", loss=1.0)
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path), method="rosa")
    assert math.isnan(row.val_loss_mean) and row.val_loss_n == 0 and math.isnan(row.BLEU_mean)
    assert row.NIST_mean == 8.5
    assert markdown_rows(tmp_path)[1]["val loss"] == "–"


def test_further_scores_are_in_the_csv_and_can_be_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, scores={"distinct_1": 0.25, "items": 630})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert row_of(frame).distinct_1_mean == 0.25 and "items_mean" not in frame
    assert "distinct 1" not in markdown_rows(tmp_path)[0]
    compile_results([tmp_path], columns=["distinct_1", "BLEU"])
    header = list(markdown_rows(tmp_path)[0])
    assert header[-2:] == ["distinct 1", "BLEU"]
    assert [name for name in csv_of(tmp_path) if name.endswith("_mean")] == ["distinct_1_mean", "BLEU_mean"]


def test_sort(tmp_path: Path) -> None:
    for rank, bleu in ((0.0125, 0.5), (0.025, 0.7), (0.05, 0.6)):
        write_run(tmp_path, rank=rank, loss=bleu, scores={"BLEU": bleu})
    write_run(tmp_path, rank=0.1, scores={"absent": True}, loss=2.0)

    def ranks(sort: str | None) -> list[str]:
        compile_results([tmp_path], sort=sort)
        return list(csv_of(tmp_path)["rank"])

    assert ranks(None) == ["0.0125", "0.025", "0.05", "0.1"]  # as --help says: by trainable parameters
    assert ranks("BLEU") == ["0.025", "0.05", "0.0125", "0.1"]  # best first, those without a value last
    assert ranks("BLEU:asc") == ["0.0125", "0.05", "0.025", "0.1"]
    assert ranks("val_loss") == ["0.0125", "0.05", "0.025", "0.1"]
    assert ranks("rank:desc") == ["0.1", "0.05", "0.025", "0.0125"]


def test_a_table_for_each_dataset_and_only_those_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, loss=1.0)
    write_run(tmp_path, dataset="eli5", loss=3.0)
    assert len(compile_results([tmp_path], formats=["csv"])) == 2
    assert row_of(csv_of(tmp_path, "eli5")).val_loss_mean == 3.0
    assert not (tmp_path / "eli5" / "results.md").exists()
    out = tmp_path / "elsewhere"
    assert compile_results([tmp_path], ["eli5"], out=out, formats=["md"]) == [out / "eli5" / "results.md"]
    mixed = tmp_path / "mixed"
    for dataset in ("e2e_nlg", "eli5"):
        shutil.move(str(tmp_path / dataset), str(mixed / "sub" / dataset))
    for run in list((mixed / "sub").glob("*/label-*")):
        shutil.move(str(run), str(mixed / run.name))
    names = {path.name for path in compile_results([mixed], formats=["csv"])}
    assert names == {"results-e2e_nlg.csv", "results-eli5.csv"}  # one folder: neither overwrites the other


def test_directory_names_are_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, loss=1.0)
    run.rename(run.with_name("gpt2-large-lora-r99-s7-deadbeef"))
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert (row.method, row["rank"], row.seeds, row.model) == ("rosa", "0.05", 0, "gpt2")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"columns": ["BLUE"]}, "Did you mean BLEU"),
        ({"sort": "perplexitie"}, "--sort"),
        ({"sort": "BLEU:down"}, ":asc"),
        ({"formats": ["xlsx"]}, "csv, md, tex"),
        ({"datasets": ["eli5"]}, "The runs are of: e2e_nlg"),
        ({"baseline": "adalora"}, "--baseline"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: dict[str, object], says: str) -> None:
    write_run(tmp_path)
    with pytest.raises(UserError, match=re.escape(says)):
        compile_results([tmp_path], **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("results*"))


def test_no_finished_run_is_an_error_that_lists_them(tmp_path: Path) -> None:
    write_run(tmp_path, status="failed", record={"error": "boom"})
    with pytest.raises(UserError, match="boom"):
        compile_results([tmp_path])


def test_command_line(tmp_path: Path) -> None:
    write_run(tmp_path, loss=1.5)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "compile_results.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = run(str(tmp_path), "--columns", "val_loss", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert "1.5000" in done.stdout and csv_of(tmp_path).val_loss_mean[0] == 1.5
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (empty, tmp_path / "absent"):
        done = run(str(folder))
        assert done.returncode == 2 and done.stderr.startswith("error: ") and str(folder) in done.stderr
        assert "Traceback" not in done.stderr


def test_a_note_says_how_many_items_have_texts(tmp_path: Path) -> None:
    write_run(tmp_path, evaluation={"items": 1173, "predictions": 100})
    compile_results([tmp_path])
    assert "generated for 100 of 1,173 test items" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
