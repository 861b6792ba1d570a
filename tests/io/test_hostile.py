"""Folders from elsewhere: whatever lies in a run's place, no command hangs, and the runs beside it get results."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.mutations import UNREADABLE, replace
from tests.records import csv_of, write_run
from utils.errors import UserError
from utils.evaluation import Options, evaluate_runs
from utils.generation.decoding import Decoding
from utils.metrics.scoring.score_runs import main as score
from utils.plots import draw_figures
from utils.runs import find_runs
from utils.tables import compile_results

RECORDS = ("run.json", "config.yaml", "metrics.jsonl", "eval.json", "scores.json")
TEXTS = ("test_predictions.txt", "test_predictions.jsonl", "test_references.txt")


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", [*RECORDS, *TEXTS])
def test_one_bad_run_does_not_cost_the_table(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, method="lora")
    bad = write_run(tmp_path, method="rosa")
    replace(bad / name, UNREADABLE[kind])
    compile_results([tmp_path])
    rows = csv_of(tmp_path)
    assert "lora" in set(rows.method)
    if name == "run.json":
        assert bad.name in capsys.readouterr().out and len(rows) == 1


@pytest.mark.parametrize("kind", UNREADABLE)
def test_one_bad_run_does_not_cost_the_figure(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, method="lora")
    for rank, name in enumerate(("run.json", "metrics.jsonl", "config.yaml"), 1):
        replace(write_run(tmp_path, method="rosa", rank=rank) / name, UNREADABLE[kind])
    written = draw_figures(tmp_path / "e2e_nlg", only=["validation_curves"])
    assert [path.suffix for path in written] == [".png", ".pdf"]
    printed = capsys.readouterr().out
    assert "run.json" in printed and ("metrics.jsonl" in printed or kind == "loop")  # such a link is as no file


@pytest.mark.parametrize("kind", ["pipe", "endless", "loop", "large"])
def test_one_bad_run_does_not_cost_the_scores(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (None, "test_predictions.txt", "test_references.txt", "test_predictions.jsonl", "scores.json"):
        run = write_run(tmp_path, seed=len(name or ""))
        for file in TEXTS:
            (run / file).write_text(
                "" if file.endswith("jsonl") else "A pub by the river is cheap.\n", encoding="utf-8"
            )
        (run / "test_predictions.jsonl").unlink()
        (run / "scores.json").unlink()
        if name:
            replace(run / name, UNREADABLE[kind])
    score([str(tmp_path)])
    assert capsys.readouterr().out.count("scored") >= 2  # the good one, and the one whose old scores cannot be read


@pytest.mark.parametrize("kind", UNREADABLE)
def test_one_bad_run_does_not_cost_the_evaluation(kind: str, train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good = train("train.epochs=1", "fnmodel.params.rank=2")
    root = good.path.parent
    spoiled = ("run.json", "config.yaml", "checkpoints/best/state.json", "checkpoints/best/adapter_config.json")
    for name in spoiled:
        copy = root / name.replace("/", "-")
        shutil.copytree(good.path, copy, symlinks=True)
        replace(copy / name, UNREADABLE[kind])
    options = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu", limit=1)
    assert evaluate_runs([str(root)], options) == 1
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.err.splitlines()].count("failed") == len(spoiled)
    assert good.evaluation()


def test_runs_are_found_below_any_number_of_folders(tmp_path: Path) -> None:
    write_run(tmp_path)
    before, levels = os.getcwd(), 1100
    os.chdir(tmp_path)
    try:
        for _ in range(levels):
            os.mkdir("a")
            os.chdir("a")
        assert len(find_runs([tmp_path])) == 1
    finally:
        for _ in range(levels):  # shutil.rmtree, which calls itself for each level, cannot remove them
            os.chdir("..")
            os.rmdir("a")
        os.chdir(before)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    (tmp_path / "closed").mkdir(mode=0)
    assert len(find_runs([tmp_path])) == 1
    assert f"{tmp_path / 'closed'} cannot be read" in capsys.readouterr().err


def test_a_chain_of_reports_ends_in_an_error_where_nothing_is_left(tmp_path: Path) -> None:
    replace(write_run(tmp_path) / "run.json", os.mkfifo)
    with pytest.raises(UserError, match=r"run\.json cannot be read: it is not a regular file"):
        compile_results([tmp_path])
