"""Each metric: values computed by hand, other implementations, and properties that hold for any text."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU as SacreBLEU

from utils.errors import UserError
from utils.metrics import OFFICIAL, Scorer, applicable, main_scores, metrics, score
from utils.metrics.bleu import BLEU
from utils.metrics.cider import CIDEr
from utils.metrics.distinct import Distinct
from utils.metrics.length_ratio import LengthRatio
from utils.metrics.meteor import METEOR
from utils.metrics.meteor15.counts import combine
from utils.metrics.nist import NIST
from utils.metrics.rouge_l import RougeL, common_subsequence
from utils.metrics.scoring.workers import FEWEST

VOCABULARY = ["the", "a", "cheap", "cheaply", "pub", "pubs", "child", "children", "near", "river", "is", "serves"]
VOCABULARY += ["serving", "it", ",", ".", "food", "rating", "rated"]
TEXT = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=9).map(" ".join)
GROUP = st.lists(TEXT, min_size=1, max_size=3)
ITEMS = st.lists(st.tuples(TEXT, GROUP), min_size=2, max_size=5)
LETTERS = st.text("abc ", max_size=20)
RICH = "the old pub by the river serves cheap english food to families every single day"


def split(items: list[tuple[str, list[str]]]) -> tuple[list[str], list[list[str]]]:
    return [text for text, _ in items], [group for _, group in items]


def test_nist_by_hand() -> None:
    # Tokens: a b | a c. Weights: a = log2(4/2) = 1, b = c = log2(4/1) = 2; ab = ac = log2(2/1) = 1.
    found = score(["a b", "a x"], [["a b"], ["a c"]], names=["NIST"])["NIST"]
    unigrams, bigrams = (1 + 2 + 1) / 4, 1 / 2
    assert found == pytest.approx(unigrams + bigrams)


def test_nist_brevity_penalty_is_one_half_at_two_thirds() -> None:
    references = [["a b c d e f"], ["g h i"]]
    full = NIST(references).score(["a b c d e f", "g h i"])["NIST"]
    statistics = NIST(references).statistics(["a b c d e f", "g h i"]).sum(axis=0)
    statistics[10] *= 1.5  # the length of the references
    assert NIST(references).aggregate(statistics)["NIST"] == pytest.approx(full / 2)


def test_nist_averages_the_length_over_all_references() -> None:
    # Items with four references and with one: (3 · 1 + 1 + 6) / 5 = 2 tokens on average, not (1 + 6) / 2.
    nist = NIST([["a", "b", "c", "d"], ["e f g h i j"]])
    statistics = nist.statistics(["a", "e f g"]).sum(axis=0)
    assert statistics[10:].tolist() == [10, 5, 2]
    # Four tokens against 2 · 2 expected ones: no penalty.
    weights, ngrams = statistics[:5], statistics[5:10]
    expected = sum(weight / count for weight, count in zip(weights, ngrams, strict=True) if count)
    assert nist.aggregate(statistics)["NIST"] == pytest.approx(expected)


def test_bleu_statistics_by_hand() -> None:
    row = BLEU([["the cheap pub by the river", "a pub"]]).statistics(["the pub by the river"])[0]
    assert row.tolist() == [5, 3, 2, 1, 5, 4, 3, 2, 5, 6]


@given(ITEMS)
@settings(max_examples=50, deadline=None)
def test_bleu_is_sacrebleu_on_the_corpus(items: list[tuple[str, list[str]]]) -> None:
    predictions, references = split(items)
    most = max(map(len, references))
    columns = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    expected = SacreBLEU(tokenize="13a").corpus_score(predictions, columns).score / 100
    assert score(predictions, references, names=["BLEU"])["BLEU"] == pytest.approx(expected, abs=1e-12)


@given(st.text("abc", max_size=12), st.text("abcd", max_size=12))
@settings(deadline=None)
def test_common_subsequence_against_the_textbook_table(first: str, second: str) -> None:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    masks: dict[str, int] = {}
    for position, letter in enumerate(second):
        masks[letter] = masks.get(letter, 0) | 1 << position
    assert common_subsequence(first, masks, len(second)) == table[-1][-1]


def coco(kind: str) -> Callable[[list[str], list[list[str]]], float]:
    if kind == "ROUGE_L":
        from pycocoevalcap.rouge.rouge import Rouge as Official
    else:
        from pycocoevalcap.cider.cider import Cider as Official

    def run(predictions: list[str], references: list[list[str]]) -> float:
        output = {item: [text] for item, text in enumerate(predictions)}
        return float(Official().compute_score(dict(enumerate(references)), output)[0])

    return run


@pytest.mark.parametrize("name", ["ROUGE_L", "CIDEr"])
@given(items=st.lists(st.tuples(LETTERS, st.lists(LETTERS, min_size=1, max_size=3)), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_rouge_and_cider_are_the_coco_code(name: str, items: list[tuple[str, list[str]]]) -> None:
    predictions, references = split([(" ".join(p.split()), [" ".join(r.split()) or "a" for r in g]) for p, g in items])
    # Single letters are PTB tokens, so that COCO's code needs no tokenizer.
    expected = coco(name)(predictions, references)
    assert score(predictions, references, names=[name])[name] == pytest.approx(expected, abs=1e-9)


def test_meteor_from_its_statistics() -> None:
    # Each text has two words, one of them matched exactly, no function words: P = R = 1/2, one chunk of one word.
    row = [2, 2, 0, 0, 1, 1, *[0] * 14, 1, 1, 1]
    assert combine(row) == pytest.approx(0.5 * (1 - 0.6))
    assert combine([0.0] * 23) == 0.0


def test_meteor_weights_its_matchers() -> None:
    synonym = METEOR([["large dog"]]).score(["big dog"])["METEOR"]
    stem = METEOR([["the dogs"]]).score(["the dog"])["METEOR"]
    assert synonym == pytest.approx((0.8 + 1) / 2)
    # The weight is 0.75 for content words and 0.25 for function words ("the").
    assert stem == pytest.approx((0.75 * 0.6 + 0.25) / (0.75 + 0.25))


def test_meteor_takes_the_reference_that_scores_highest() -> None:
    both = METEOR([["something else", "the pub is by the river"]]).score(["the pub is near the river"])
    one = METEOR([["the pub is by the river"]]).score(["the pub is near the river"])
    assert both == one


@pytest.mark.parametrize("name", ["BLEU", "METEOR", "ROUGE_L"])
def test_references_against_themselves_score_one(name: str) -> None:
    references = [[RICH, "some other text"], ["the quick brown fox jumps over a lazy dog"], ["one two three four five"]]
    assert score([group[0] for group in references], references, names=[name])[name] == pytest.approx(1)


def test_references_against_themselves_reach_ciders_maximum() -> None:
    references = [[RICH], ["one two three four five six"], ["seven eight nine ten eleven"]]
    assert score([group[0] for group in references], references, names=["CIDEr"])["CIDEr"] == pytest.approx(10)


@given(ITEMS, st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_the_order_of_items_and_references_does_not_matter(
    items: list[tuple[str, list[str]]], rng: random.Random
) -> None:
    shuffled = [(text, rng.sample(group, len(group))) for text, group in items]
    rng.shuffle(shuffled)
    # Not METEOR: of references with equal scores, which may have different lengths, it takes the first.
    names = [name for name in OFFICIAL if name != "METEOR"]
    assert score(*split(shuffled), names=names) == pytest.approx(score(*split(items), names=names), abs=1e-9)


@given(ITEMS)
@settings(max_examples=25, deadline=None)
def test_duplicate_references_do_not_change_bleu_meteor_and_rouge(items: list[tuple[str, list[str]]]) -> None:
    predictions, references = split(items)
    names = ["BLEU", "METEOR", "ROUGE_L"]
    doubled = [[*group, *group] for group in references]
    assert score(predictions, doubled, names=names) == pytest.approx(score(predictions, references, names=names))


@given(ITEMS, TEXT)
@settings(max_examples=25, deadline=None)
def test_another_reference_never_lowers_rouge(items: list[tuple[str, list[str]]], text: str) -> None:
    predictions, references = split(items)
    more = score(predictions, [[*group, text] for group in references], names=["ROUGE_L"])["ROUGE_L"]
    assert more >= score(predictions, references, names=["ROUGE_L"])["ROUGE_L"] - 1e-12


@given(ITEMS)
@settings(max_examples=25, deadline=None)
def test_scores_lie_in_their_ranges(items: list[tuple[str, list[str]]]) -> None:
    scores = score(*split(items))
    assert list(scores) == list(OFFICIAL)
    assert all(0 <= scores[name] <= 1 + 1e-12 for name in ("BLEU", "METEOR", "ROUGE_L"))
    assert 0 <= scores["CIDEr"] <= 10 + 1e-9
    assert scores["NIST"] >= 0


def test_a_scorer_gives_the_same_scores_in_any_order_of_systems() -> None:
    references = [[RICH, "a cheap pub"], ["the river is near"]]
    systems = [["a pub", "the river"], ["the old pub serves food", "near it"], ["", ""]]
    together = Scorer(references)
    assert [together.score(system) for system in systems] == [Scorer(references).score(system) for system in systems]


def test_empty_predictions_score_zero_and_one_word_texts_are_scored() -> None:
    assert score(["", ""], [["a b"], ["c"]]) == dict.fromkeys(OFFICIAL, 0.0)
    found = score(["pub"], [["pub"]])
    assert found["METEOR"] == found["ROUGE_L"] == 1
    assert found["CIDEr"] == 0  # one item: every n-gram is in all items


def test_bleu_says_that_it_needs_four_words_of_a_prediction() -> None:
    with pytest.warns(UserWarning, match="no text has four words"):
        assert Scorer([["a good pub by the river"]], names=["BLEU"]).score(["a good pub"]) == {"BLEU": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Scorer([["a"]], names=["BLEU"]).score(["a b c d e f"])["BLEU"] == pytest.approx(0.0812, abs=1e-4)


def test_distinct_n_and_length_ratio_by_hand() -> None:
    found = score(["a b a", "a b"], [["a b c"], ["a", "a b c"]], names=["distinct_1", "distinct_2", "length_ratio"])
    assert found == {"distinct_1": 2 / 5, "distinct_2": 2 / 3, "length_ratio": 5 / (3 + 2)}
    assert Distinct([["a"]]).score([""]) == {"distinct_1": 0.0, "distinct_2": 0.0}
    assert LengthRatio([["a b"]]).score([""]) == {"length_ratio": 0.0}


def test_exact_match_counts_equal_texts_and_is_on_request_only() -> None:
    references = [["12 "], ["3", "4"], ["5"], ["é"]]
    assert score([" 12\n", "4", "55", "É"], references, names=["exact_match"]) == {"exact_match": 0.5}
    assert "exact_match" not in (*applicable(None), *main_scores()) and "exact_match" in metrics()
    assert applicable(None, ["exact_match"]) == main_scores(["exact_match"]) == ("exact_match",)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="1 predictions for 2 groups"):
        score(["a"], [["a"], ["b"]])
    with pytest.raises(UserError, match="item 2 has no reference"):
        score(["a", "b"], [["a"], []])
    with pytest.raises(UserError, match="no references"):
        score([], [])
    with pytest.raises(UserError, match=r"no metric 'BLUE'.*BLEU"):
        score(["a"], [["a"]], names=["BLUE"])
    with pytest.raises(UserError, match="SER"):
        score(["a"], [["a"]], names=["SER"])
    with pytest.raises(UserError, match="2 sources for 1"):
        score(["a"], [["a"]], sources=["x", "y"])


def test_statistics_add_up_to_the_score() -> None:
    references = [[RICH, "a cheap pub"], ["the river is near the pub"], ["food"]]
    predictions = ["the old pub serves food", "the river", "cheap food"]
    for metric in set(metrics().values()) - {metrics()["SER"]}:
        bound = metric(references)
        rows = bound.statistics(predictions)
        assert rows.shape[0] == 3
        assert bound.aggregate(rows.sum(axis=0)) == bound.score(predictions)
        assert all(math.isfinite(value) for value in bound.score(predictions).values())
        assert np.isfinite(rows).all()
    assert "SER" not in applicable(None)
    assert {CIDEr, RougeL, METEOR} <= set(metrics().values())


def test_meteor_that_begins_one_system_can_score_another() -> None:
    references = [["the pub is by the river"]] * FEWEST
    metric = METEOR(references)
    metric.begin(["a dog"] * FEWEST)
    assert metric.score(["the pub is by the river"] * FEWEST)["METEOR"] == pytest.approx(1)
    assert metric.score(["the pub"] * FEWEST) == METEOR(references[:1]).score(["the pub"])


def test_a_missing_slot_error_rate_names_the_source_that_is_in_the_way() -> None:
    sources = ["name[Zizzi], food[Thai]"] * 4
    assert "SER" in applicable(sources) and "SER" not in applicable(["free text"] * 5)
    with pytest.warns(
        UserWarning, match=r"1 of 5 sources are no meaning representations, the first is 'food\[Thai\], food"
    ):
        assert "SER" not in applicable([*sources, "food[Thai], food[Indian]"])
