"""compile_results.py --compare: paired differences of two runs' test scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.records import write_run
from utils.data import pair
from utils.errors import UserError
from utils.evaluation import write_predictions
from utils.results.compare import compare_runs
from utils.runs import Run

TEXTS = [f"{name} is a family friendly pub near the river in the city centre." for name in "ABCDEFGHIJKL"]
GROUPS = [[pair(f"name[{text[0]}], eatType[pub]", text)] for text in TEXTS]


def run_with(folder: Path, seed: int, texts: list[str]) -> Path:
    """A finished run with ``texts`` as its predictions."""
    path = write_run(folder, seed=seed)
    write_predictions(Run(path), "test", GROUPS, [group[0].prompt for group in GROUPS], texts)
    return path


def rows(table: str) -> dict[str, list[str]]:
    """The numbers of each score, as texts."""
    return {line.split()[0]: line.replace("[", " ").replace("]", " ").replace(",", " ").split()[1:7]
            for line in table.splitlines()[5:]}  # fmt: skip


def test_a_run_against_itself_does_not_differ(tmp_path: Path) -> None:
    first, second = run_with(tmp_path, 0, TEXTS), run_with(tmp_path, 1, TEXTS)
    table = compare_runs(first, second)
    compared = rows(table)
    assert list(compared) == ["BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr", "SER"], "the order of a table"
    assert [line.split()[-1] for line in table.splitlines()[5:]] == ["higher"] * 5 + ["lower"]
    assert all(float(row[2]) == 0 and float(row[5]) == 1 for row in compared.values())


def test_a_better_run_differs_in_the_right_direction(tmp_path: Path) -> None:
    worse = [text.replace("family friendly pub", "place") for text in TEXTS]
    compared = rows(compare_runs(run_with(tmp_path, 0, TEXTS), run_with(tmp_path, 1, worse)))
    for name in ("BLEU", "METEOR", "ROUGE_L"):
        first, second, difference, low, high, p = map(float, compared[name])
        assert difference == pytest.approx(first - second, abs=2e-4) and 0 < low <= difference <= high
        assert p < 0.05


def test_different_decoding_is_named(tmp_path: Path) -> None:
    first, second = run_with(tmp_path, 0, TEXTS), run_with(tmp_path, 1, TEXTS)
    assert "different decoding" not in compare_runs(first, second)
    evaluation = json.loads((second / "eval.json").read_text())
    evaluation["test"]["decoding"] |= {"num_beams": 1, "batch_size": 3}
    (second / "eval.json").write_text(json.dumps(evaluation))
    assert "generated with different decoding: num_beams 10 for A, 1 for B\n" in compare_runs(first, second)


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    first, second = run_with(tmp_path, 0, TEXTS), run_with(tmp_path, 1, TEXTS)
    references = Run(second).references()
    references.write_text(references.read_text().replace("pub", "bar"))
    with pytest.raises(UserError, match="different references"):
        compare_runs(first, second)
    Run(second).predictions().unlink()
    with pytest.raises(UserError, match=r"is missing: run eval\.py"):
        compare_runs(first, second)
    with pytest.raises(UserError, match=r"run\.json does not exist"):
        compare_runs(first, tmp_path)
