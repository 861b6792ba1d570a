"""Suggestions, parts of file names, counts and aligned tables, which messages and tables share."""

from __future__ import annotations

import pytest

from utils.text import aligned, did_you_mean, human, slug, suggestions


def test_a_misspelt_name_is_answered_with_the_nearest_else_with_all() -> None:
    assert did_you_mean("lrr", ["lr", "epochs"]) == "did you mean lr?"
    assert did_you_mean("seed", ["lr", "epochs"]) == "known: lr, epochs"
    assert did_you_mean("seed", []) == "known: none"
    assert suggestions("rosaa", ["rosa", "lora"]) == "Did you mean rosa? Known: rosa, lora"
    assert suggestions("x", ["rosa", "lora"]) == "Known: rosa, lora"


def test_a_name_becomes_part_of_a_file_name() -> None:
    assert slug("org/model v1.5") == "org-model-v1.5"
    assert slug("../../größe_1") == "größe_1"
    assert slug("größe", r"[^A-Za-z0-9]+") == "gr-e"
    assert slug("..") == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (576, "576"), (0.25, "0.25"), (9000, "9k"), (143_360, "143k"), (5_660_000, "5.7M"), (1.3e9, "1.3B")],
)
def test_a_count_is_shortened(count: float, text: str) -> None:
    assert human(count) == text


def test_columns_stand_below_each_other() -> None:
    rows = [["run", "BLEU", ""], ["a", "0.5", "scored"], ["longer", "10.25", ""]]
    assert aligned(rows, right=[1]) == ["run      BLEU", "a         0.5  scored", "longer  10.25"]
    assert aligned([]) == []
