"""A method is one file: added to a copy of the repository, it trains, is evaluated, scored, tabulated and drawn, and
passes the generic tests."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.contributing import example, inline

METHOD = example("rosa/methods/shift.py")
NODE = example("configs/train.yaml").partition("\n")[2]
CASE = inline("Case(")

CHAIN = """
import json, runpy, sys

sys.path.insert(0, ".")
from utils.metrics.scoring.score_runs import main as score

for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        if command[0] == "eval.sh":
            score()
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, command
from utils.plots._style import method_style
assert method_style(["rosa", "shift"], "shift")[0] == "#123456"
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository with one file, a node of configs/train.yaml and a case of the generic tests more."""
    folder = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__", "default.yaml")
    for name in ("rosa", "configs", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("train.py", "eval.py", "compile_results.py", "figures.py", "utils", "assets", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "rosa" / "methods" / "shift.py").write_text(METHOD, encoding="utf-8")
    page = folder / "configs" / "train.yaml"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("\ntrain:\n", f"{NODE}\ntrain:\n", 1), encoding="utf-8")
    cases = folder / "tests" / "rosa" / "cases.py"
    text = cases.read_text(encoding="utf-8").replace("\nCASES = [\n", f"\nCASES = [\n    {CASE},\n", 1)
    text = text.replace("import rosa\n", "import rosa\nfrom rosa.methods.shift import ShiftConfig\n", 1)
    cases.write_text(text, encoding="utf-8")
    return folder


def test_a_method_is_one_file(copy: Path, small_model: Path, small_e2e: Path) -> None:
    """Beside it, two methods without a rank that come with the library."""
    train = [
        "train.py", f"model.name={small_model}", f"dataset.path={small_e2e}", "output.path=RUNS", "dataset.name=e2e",
        "fnmodel.params.rank=1000", "train.epochs=1", "train.lr=0.1", "train.batch_size=16", "train.device=cpu",
        "train.warmup_steps=0", "logging.samples=0", "logging.print_freq=2",
    ]  # fmt: skip
    commands = [
        [*train, "fnmodel.name=shift", "fnmodel.shift.strength=2"],
        [*train, "fnmodel.name=ia3"],
        [*train, "fnmodel.name=bitfit"],
        ["eval.py", "RUNS", "--device", "cpu", "--max-new-tokens", "3", "--num-beams", "1"],
        ["eval.sh", "RUNS"],
        ["compile_results.py", "RUNS"],
        ["figures.py", "--fn", "RUNS/e2e_nlg", "--metric", "BLEU"],
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHAIN, json.dumps(commands)], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = copy / "RUNS" / "e2e_nlg"
    runs = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/run.json")}
    assert sorted(record["method"] for record in runs.values()) == ["bitfit", "ia3", "shift"]
    for name, record in runs.items():
        assert f"-{record['method']}-s0-" in name  # no rank between them
        assert (record["status"], record["rank"]) == ("finished", None)
        points = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        validation = [point["loss"] for point in points if point["split"] == "validation"]
        assert validation[-1] < validation[0]
        assert json.loads((folder / name / "scores.json").read_text())["test"].keys() >= {"BLEU", "NIST"}
    table = (folder / "results.md").read_text(encoding="utf-8")
    places = [table.index(label) for label in ("BitFit", "Trained shift", "(IA)³")]
    assert places == sorted(places)
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["rank"]) for row in rows] == [("bitfit", ""), ("shift", ""), ("ia3", "")]
    drawn = {path.stem.partition("-")[0] for path in (folder / "figures").glob("*.pdf")}
    assert {"parameters", "cost", "training_curves", "validation_curves"} <= drawn


def test_its_case_passes_the_generic_tests(copy: Path) -> None:
    files = [f"tests/rosa/test_adapter_{part}.py" for part in ("inject", "merge", "files")]
    command = [sys.executable, "-m", "pytest", *files, "-k", "shift or every_method", "-rp"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("[gpt2-shift]") >= len(files), done.stdout
