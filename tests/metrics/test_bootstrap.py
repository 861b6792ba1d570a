"""Bootstrap intervals and the paired test: known answers and statistical properties."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from utils.errors import UserError
from utils.metrics import score
from utils.metrics.scoring.bootstrap import Interval, compare

WORDS = ["the", "pub", "is", "cheap", "by", "a", "river", "and", "serves", "good", "food", "to", "families", "near"]


def noisy(texts: list[str], share: float, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(word if rng.random() > share else "x" for word in text.split()) for text in texts]


def intervals(system: list[str], references: list[list[str]], **options: Any) -> dict[str, Interval]:
    """The interval of each score of one system."""
    return {name: both.first for name, both in compare(system, system, references, **options).items()}


@pytest.fixture(scope="module")
def references() -> list[list[str]]:
    rng = random.Random(0)
    return [[" ".join(rng.sample(WORDS, 10))] for _ in range(60)]


@pytest.fixture(scope="module")
def texts(references: list[list[str]]) -> list[str]:
    return [group[0] for group in references]


def test_the_interval_contains_the_score_and_depends_on_the_seed_only(
    texts: list[str], references: list[list[str]]
) -> None:
    system = noisy(texts, 0.3, 1)
    found = intervals(system, references, samples=200)
    scores = score(system, references)
    for name, interval in found.items():
        assert interval.score == pytest.approx(scores[name])
        assert interval.low < interval.score < interval.high, name
    assert intervals(system, references, samples=200) == found
    assert intervals(system, references, samples=200, seed=1) != found


def test_a_perfect_system_has_no_spread(texts: list[str], references: list[list[str]]) -> None:
    interval = intervals(texts, references, names=["ROUGE_L"], samples=50)["ROUGE_L"]
    assert (interval.low, interval.score, interval.high) == (1, 1, 1)


def test_the_interval_is_as_wide_as_that_of_a_normal_mean(texts: list[str], references: list[list[str]]) -> None:
    system = noisy(texts, 0.3, 1)
    interval = intervals(system, references, names=["ROUGE_L"], samples=2000)["ROUGE_L"]
    pairs = zip(system, references, strict=True)
    items = [score([text], [group], names=["ROUGE_L"])["ROUGE_L"] for text, group in pairs]
    expected = 2 * 1.96 * np.std(items) / np.sqrt(len(items))
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_a_better_system_is_significantly_better(texts: list[str], references: list[list[str]]) -> None:
    found = compare(noisy(texts, 0.1, 1), noisy(texts, 0.4, 2), references, samples=300)
    for name, comparison in found.items():
        assert comparison.difference == pytest.approx(comparison.first.score - comparison.second.score)
        assert 0 < comparison.low < comparison.difference < comparison.high, name
        assert comparison.p_value < 0.01
        assert comparison.p_value >= 1 / 301
    swapped = compare(noisy(texts, 0.4, 2), noisy(texts, 0.1, 1), references, samples=300)
    assert swapped["BLEU"].difference == pytest.approx(-found["BLEU"].difference)
    assert swapped["BLEU"].p_value == found["BLEU"].p_value


def test_a_system_against_itself_is_no_better(texts: list[str], references: list[list[str]]) -> None:
    system = noisy(texts, 0.3, 1)
    comparisons = compare(system, system, references, samples=50).values()
    assert all(comparison.p_value == 1 and comparison.low == comparison.high == 0 for comparison in comparisons)


def test_equally_good_systems_rarely_differ_significantly(references: list[list[str]], texts: list[str]) -> None:
    comparisons = [
        compare(noisy(texts, 0.3, 2 * i), noisy(texts, 0.3, 2 * i + 1), references, names=["ROUGE_L"], samples=200)
        for i in range(40)
    ]
    significant = sum(comparison["ROUGE_L"].p_value < 0.05 for comparison in comparisons)
    assert significant <= 7  # 2 expected; the probability of more than 7 of 40 is about 1 in 1,000


def test_the_paired_test_finds_a_difference_that_intervals_hide(texts: list[str], references: list[list[str]]) -> None:
    # The texts differ in one word: their intervals overlap, but the paired difference is significant.
    first = noisy(texts, 0.3, 1)
    second = [text.replace("x", "y", 1) + " z" for text in first]
    comparison = compare(first, second, references, names=["ROUGE_L"], samples=300)["ROUGE_L"]
    assert comparison.second.high > comparison.first.low
    assert comparison.p_value < 0.01


def test_bad_input(texts: list[str], references: list[list[str]]) -> None:
    with pytest.raises(UserError, match="not a sum over items"):
        intervals(texts, references, names=["distinct_1"])
    with pytest.raises(UserError, match="59 predictions for 60"):
        compare(texts, texts[:-1], references)
    with pytest.raises(UserError, match="at least one sample"):
        intervals(texts, references, samples=0)
