"""Runs and results that a table leaves out, and the reasons that it gives."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import pytest

from tests.records import csv_of, markdown_rows, row_of, write_run
from utils.errors import UserError
from utils.tables import compile_results


def test_omitted_runs_are_listed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, loss=1.0)
    reasons = {
        write_run(tmp_path, seed=1, status="failed", record={"error": "out of memory\non GPU"}): "out of memory on GPU",
        write_run(tmp_path, seed=2, status="interrupted"): "interrupted at step 500 of 500",
        write_run(tmp_path, seed=3, status="running"): "running",
        write_run(tmp_path, seed=4, scores={"absent": True}): "not scored",
        write_run(tmp_path, seed=5, evaluation={"absent": True}, scores={"absent": True}): "not evaluated",
        write_run(tmp_path, seed=6, evaluation={"limit": 50}): "the first 50 items only",
        write_run(tmp_path, seed=7, scores={"predictions_sha256": "0" * 64}): "stale",
        write_run(tmp_path, seed=8, scores={"predictions_sha256": None}): "does not say which predictions",
    }
    changed = write_run(tmp_path, seed=9, scores={"references_sha256": "0" * 64})
    (changed / "test_references.txt").write_text("others\n", encoding="utf-8")
    reasons[changed] = "test_references.txt has changed"
    other = {"references_sha256": "1" * 64}
    rescored = write_run(tmp_path, seed=13, evaluation=other, scores={"references_sha256": "0" * 64})
    reasons[rescored] = "of different files test_references.txt"
    lost = write_run(tmp_path, seed=12)
    (lost / "test_predictions.txt").unlink()
    reasons[lost] = "test_predictions.txt is missing"
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
    assert all(line.startswith("%") for line in latex.split("% Not in the table")[1].splitlines()[1:])
    row = row_of(csv_of(tmp_path))
    assert row.n == 10 and row.val_loss_n == 10  # all finished runs, scored or not
    assert row.test_perplexity_n == 8  # seeds 0, 4, 7, 8, 9, 11, 12 and 13 are evaluated on all items
    assert row.BLEU_n == 1
    assert "(1)" in markdown_rows(tmp_path)[0]["BLEU"]


def test_a_record_without_references_keeps_its_scores(tmp_path: Path) -> None:
    write_run(tmp_path, scores={"references_sha256": "0" * 64})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path)).BLEU_n == 1


def test_without_full_evaluations_the_most_common_limit_is_shown_and_noted(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, loss=1.0, evaluation={"limit": 50})
    write_run(tmp_path, seed=1, loss=2.0, evaluation={"limit": 50})
    write_run(tmp_path, seed=2, loss=9.0, evaluation={"limit": 10})
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert row.val_loss_n == 3 and row.test_loss_n == 2 and row.test_loss_mean == pytest.approx(1.6)
    assert "first 50 items only" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")


def test_a_limit_above_the_number_of_items_is_no_limit(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, loss=1.0, evaluation={"limit": 1000, "predictions": 630})
    write_run(tmp_path, seed=1, loss=2.0)
    write_run(tmp_path, seed=2, loss=3.0, evaluation={"limit": 630, "predictions": 630, "all_items": 630})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path)).test_loss_n == 3


def test_scores_of_predictions_that_were_not_evaluated_do_not_count(tmp_path: Path) -> None:
    write_run(tmp_path, evaluation={"predictions_sha256": "0" * 64})
    compile_results([tmp_path])
    assert "BLEU_mean" not in csv_of(tmp_path)
    assert "of different files test" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")


def test_scores_are_stale_if_any_file_of_texts_has_changed(tmp_path: Path) -> None:
    """A record that lacks a file keeps its scores, as a study commits predictions alone."""
    names = {"predictions": "test_predictions.txt", "raw_predictions": "test_predictions.jsonl"}
    names["references"] = "test_references.txt"
    hashes = {f"{key}_sha256": hashlib.sha256(name.encode()).hexdigest() for key, name in names.items()}
    for seed, edited in enumerate((None, *names)):
        run = write_run(tmp_path, seed=seed, evaluation=hashes, scores=hashes)
        for key, name in names.items():
            (run / name).write_text("edited" if key == edited else name, encoding="utf-8")
    (write_run(tmp_path, seed=9, evaluation=hashes, scores=hashes) / names["predictions"]).write_text(
        names["predictions"]
    )
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert (row.n, row.test_loss_n, row.BLEU_n) == (5, 5, 2)
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert all(f"scores are stale: {name} has changed" in page for name in names.values())


def test_a_perplexity_is_that_of_its_loss(tmp_path: Path) -> None:
    write_run(tmp_path, evaluation={"loss": 1.0, "perplexity": 9.0})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path)).test_perplexity_mean == pytest.approx(math.e)


def test_test_results_of_an_earlier_training_do_not_count(tmp_path: Path) -> None:
    """A record without its weights, as a study commits it, keeps them."""
    for seed, content in enumerate(("{}", "other", None)):
        digest = hashlib.sha256(b"{}").hexdigest()
        run = write_run(tmp_path, seed=seed, loss=1.0 + seed, evaluation={"checkpoint_sha256": digest})
        if content is not None:
            best = run / "checkpoints" / "best"
            best.mkdir(parents=True)
            (best / "state.json").write_text(content, encoding="utf-8")
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert row.val_loss_n == 3 and row.test_loss_n == row.BLEU_n == 2 and row.test_loss_mean == pytest.approx(2.1)
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert "eval.json is of another checkpoint: its test results are not counted (run eval.py again)" in page


def test_no_finished_run_is_an_error_that_lists_them(tmp_path: Path) -> None:
    write_run(tmp_path, status="failed", record={"error": "boom"})
    with pytest.raises(UserError, match="boom"):
        compile_results([tmp_path])


def test_a_note_says_how_many_items_have_texts(tmp_path: Path) -> None:
    write_run(tmp_path, evaluation={"items": 1173, "predictions": 100})
    compile_results([tmp_path])
    assert "generated for 100 of 1,173 test items" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
