"""compile_results: its files, arguments and command line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.records import csv_of, row_of, write_run
from utils.errors import UserError
from utils.tables import compile_results

ROOT = Path(__file__).parents[2]


def test_one_table_per_data_set_or_only_the_given_ones(tmp_path: Path) -> None:
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
    assert names == {"results-e2e_nlg.csv", "results-eli5.csv"}  # in one folder, two names


def test_the_table_of_one_run_does_not_replace_that_of_all(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, seed=seed) for seed in (0, 1)]
    compile_results([tmp_path], formats=["csv"])
    assert compile_results([runs[1]], formats=["csv"]) == [runs[1] / "results.csv"]
    assert csv_of(tmp_path).n[0] == 2


def test_directory_names_are_not_read(tmp_path: Path) -> None:
    run = write_run(tmp_path, loss=1.0)
    run.rename(run.with_name("gpt2-large-lora-r99-s7-deadbeef"))
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path))
    assert (row.method, row["rank"], row.seeds, row.model) == ("rosa", "0.05", 0, "gpt2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["BLUE"]}, "Did you mean BLEU"),
        ({"sort": "perplexitie"}, "--sort"),
        ({"sort": "BLEU:down"}, ":asc"),
        ({"formats": ["xlsx"]}, "csv, md, tex"),
        ({"datasets": ["eli5"]}, "The runs are on: e2e_nlg"),
        ({"baseline": "adalora"}, "--baseline"),
    ],
)
def test_bad_arguments_write_nothing(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    write_run(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)):
        compile_results([tmp_path], **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("results*"))


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
