"""The phone book: random, reproducible, its information known, and learnt by a model as the table says."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import make_config
from utils.data import get_source
from utils.errors import UserError
from utils.runs.identity import group_hash

SPLITS = ("train", "validation", "test")


def book(size: int | None = None, number: int = 0) -> list[tuple[str, str]]:
    examples = get_source("phone_book", size, number).load("train", None, None)
    assert all(e.prompt == f"{e.source}:" and e.target == e.reference for e in examples)
    return [(e.source, e.target) for e in examples]


def test_the_pairs_are_those_of_every_machine() -> None:
    """All splits have the same pairs, a larger book begins with the smaller one, another number is another book."""
    assert book(2) == [("rsvoqv", "0613019806"), ("yagbqf", "9648401042")]
    source = get_source("phone_book", 50)
    assert source.load("train", None, None) == source.load("validation", None, None) == source.load("test", None, None)
    assert book(300)[:50] == book(50) and len(book()) == 200
    assert not {key for key, _ in book(number=1)} & {key for key, _ in book()}


def test_keys_are_distinct_and_digits_uniform_at_each_place() -> None:
    """Pearson's statistic of each of the ten places: 9 degrees of freedom, .9999 quantile 33.7."""
    pairs = book(5000)
    assert len({key for key, _ in pairs}) == 5000 and {len(key) for key, _ in pairs} == {6}
    for place in range(10):
        counts = Counter(number[place] for _, number in pairs)
        assert sum((counts[digit] - 500) ** 2 / 500 for digit in "0123456789") < 33.7
    assert math.isclose(get_source("phone_book").target_bits or 0, math.log2(10**10))


def test_its_size_and_number_belong_to_it_alone(tmp_path: Path) -> None:
    hashes = {
        group_hash(make_config("dataset.name=phone_book", *more))
        for more in ((), ("dataset.size=50",), ("dataset.book=1",), ("dataset.size=50", "dataset.book=1"))
    }
    assert len(hashes) == 4
    for given in ("dataset.size=50", "dataset.book=1"):
        with pytest.raises(UserError, match=r"dataset\.size and dataset\.book do not go with e2e, whose"):
            make_config(given)
    with pytest.raises(UserError, match=r"dataset\.size=0 must be at least 1"):
        make_config("dataset.name=phone_book", "dataset.size=0")
    with pytest.raises(UserError, match=r"dataset\.path=.* does not go with dataset\.name=phone_book"):
        get_source("phone_book").load("train", tmp_path, None)
