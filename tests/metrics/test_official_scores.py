"""Scores equal the official E2E scorer's own numbers on real system outputs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.conftest import data_folder
from utils.metrics import score


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8").replace("\r\n", "\n").removesuffix("\n").split("\n")


def groups(path: Path) -> list[list[str]]:
    return [block.split("\n") for block in path.read_text(encoding="utf-8").strip("\n").split("\n\n")]


NAMES = ("BLEU", "NIST", "ROUGE_L", "CIDEr")


def test_scores_equal_the_official_ones() -> None:
    folder = data_folder("SCORES_DIR")
    with (folder / "scores.tsv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) > 5
    for row in rows:
        found = score(lines(folder / f"{row['id']}.txt"), groups(folder / row["references"]), names=NAMES)
        for name in NAMES:
            assert found[name] == pytest.approx(float(row[name]), abs=1e-6), (row["id"], name)


def test_a_text_against_itself_is_perfect() -> None:
    texts = ["The Eagle is a pub by the river with good food.", "Cotto is an English coffee shop near The Bakers."]
    found = score(texts, [[text] for text in texts], names=NAMES)
    assert found["BLEU"] == pytest.approx(1) and found["ROUGE_L"] == pytest.approx(1)
    assert score(texts[::-1], [[text] for text in texts], names=NAMES)["BLEU"] < 0.5
