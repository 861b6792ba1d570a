"""METEOR's parts: relations of words, alignments that the jar printed, and what an alignment must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics.meteor15 import resources as tables
from utils.metrics.meteor15.align import EXACT, Match, align, count_chunks
from utils.metrics.meteor15.lexicon import Words
from utils.metrics.meteor15.matches import Text, find_matches
from utils.metrics.meteor15.phrases import PhraseTable, phrases

CASES = json.loads((Path(__file__).parent / "cases" / "alignments.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(tables.load())


@pytest.mark.parametrize(
    ("first", "second", "stem", "synonym"),
    [
        ("families", "family", True, True),
        ("cheaply", "cheap", False, False),
        ("big", "large", False, True),
        ("located", "setting", False, True),  # locate and set
        ("children", "kid", False, True),  # irregular
        ("is", "are", False, True),
        ("better", "well", False, True),
        ("rating", "shop", False, False),  # rating is rate, not rat, which shops people
        ("us", "uranium", False, False),  # two letters have no ending
        ("ass", "as", False, False),
        ("brighter", "smart", False, True),
        ("maker", "make", False, False),  # WordNet's mak is found first
        ("dog", "dog", False, False),  # equal words match exactly and in no other way
    ],
)
def test_relations_of_words(words: Words, first: str, second: str, stem: bool, synonym: bool) -> None:
    assert words.relate(first, second) == (stem, synonym)
    assert words.relate(second, first) == (stem, synonym)


def test_prefixes_keep_the_mark_of_those_before_numbers() -> None:
    assert {"vs", "pp #NUMERIC_ONLY#"} <= tables.load().prefixes
    assert not any(prefix[0] in "#ABN" for prefix in tables.load().prefixes)


def test_alignments_are_those_of_the_jar(words: Words) -> None:
    pairs = [(Text(first.split()), Text(second.split())) for first, second, _ in CASES]
    table = PhraseTable(tables.load().paraphrases, (phrase for _, text in pairs for _, _, phrase in text.phrases))
    forward, back = table.between(phrase for text, _ in pairs for _, _, phrase in text.phrases)
    names = [{name for others in found.values() for name in others} for found in (forward, back)]
    differ = []
    for (prediction, reference), (first, second, expected) in zip(pairs, CASES, strict=True):
        prediction.link(back, names[0])
        reference.link(forward, names[1])
        found = align(len(prediction.tokens), len(reference.tokens), find_matches(prediction, reference, words))
        if [list(match) for match in found] != expected:
            differ.append((first, second))
    assert len(CASES) > 300
    assert differ == []


TOKENS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=9)


@given(TOKENS, TOKENS)
@settings(deadline=None)
def test_an_alignment_uses_each_word_once_and_as_many_as_can_be(first: list[str], second: list[str]) -> None:
    every = [
        Match(start, 1, place, 1, EXACT)
        for place, word in enumerate(second)
        for start, other in enumerate(first)
        if word == other
    ]
    found = align(len(first), len(second), every)
    assert set(found) <= set(every)
    for side in (0, 2):
        places = [match[side] for match in found]
        assert len(places) == len(set(places))
    assert len(found) == sum(min(first.count(word), second.count(word)) for word in set(first))
    assert 1 <= count_chunks(found) <= len(found) or not found


@given(TOKENS)
@settings(deadline=None)
def test_a_text_aligns_with_itself_in_one_chunk(tokens: list[str]) -> None:
    every = [
        Match(start, 1, place, 1, EXACT)
        for place, word in enumerate(tokens)
        for start, other in enumerate(tokens)
        if word == other
    ]
    found = align(len(tokens), len(tokens), every)
    assert len(found) == len(tokens) and count_chunks(found) == 1


def test_phrases_have_up_to_seven_words() -> None:
    found = phrases([str(number) for number in range(9)])
    assert len(found) == 9 + 8 + 7 + 6 + 5 + 4 + 3
    assert found[:2] == [(0, 1, "0"), (0, 2, "0 1")] and max(length for _, length, _ in found) == 7
