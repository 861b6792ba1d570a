"""Whatever lies in the place of a run's file, the runs beside it get their results."""

from __future__ import annotations

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
from utils.tables import compile_results

RECORDS = ("run.json", "config.yaml", "metrics.jsonl", "eval.json", "scores.json")
TEXTS = ("test_predictions.txt", "test_predictions.jsonl", "test_references.txt")


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", RECORDS)
def test_one_bad_run_does_not_cost_the_table(
    name: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, method="lora")
    bad = write_run(tmp_path, method="rosa")
    replace(bad / name, UNREADABLE[kind])
    compile_results([tmp_path])
    rows = csv_of(tmp_path)
    assert "lora" in set(rows.method)
    if name == "run.json" and kind != "folder":  # such a folder is no run's
        assert bad.name in capsys.readouterr().out and len(rows) == 1


def test_one_bad_run_does_not_cost_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, method="lora")
    names = ("run.json", "metrics.jsonl", "config.yaml")
    for rank, name in enumerate(names, 1):
        replace(write_run(tmp_path, method="rosa", rank=rank) / name, UNREADABLE["half"])
    written = draw_figures(tmp_path / "e2e_nlg", only=["validation_curves"])
    assert [path.suffix for path in written] == [".png", ".pdf"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in names[:2])


def test_one_bad_run_does_not_cost_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (None, *TEXTS, "scores.json"):
        run = write_run(tmp_path, seed=len(name or ""))
        for file in TEXTS[::2]:
            (run / file).write_text("A pub by the river is cheap.\n", encoding="utf-8")
        (run / "scores.json").unlink()
        if name:
            replace(run / name, UNREADABLE["loop"])
    score([str(tmp_path)])
    assert capsys.readouterr().out.count("scored") >= 2  # the good one, and the one whose old scores cannot be read


def test_one_bad_run_does_not_cost_the_evaluation(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good = train("train.epochs=1", "fnmodel.params.rank=2")
    root = good.path.parent
    spoiled = ("run.json", "config.yaml", "checkpoints/best/state.json", "checkpoints/best/adapter_config.json")
    for name in spoiled:
        copy = root / name.replace("/", "-")
        shutil.copytree(good.path, copy, symlinks=True)
        replace(copy / name, UNREADABLE["half"])
    options = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu", limit=1)
    assert evaluate_runs([str(root)], options) == 1
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.err.splitlines()].count("failed") == len(spoiled)
    assert good.evaluation()


def test_where_nothing_is_left_there_is_an_error(tmp_path: Path) -> None:
    replace(write_run(tmp_path) / "run.json", UNREADABLE["half"])
    with pytest.raises(UserError, match=r"run\.json"):
        compile_results([tmp_path])
