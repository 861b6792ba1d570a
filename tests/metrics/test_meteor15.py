"""Parts of METEOR: relations of words, alignments printed by the jar, and properties of alignments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics.meteor15.align import EXACT, Match, align, count_chunks
from utils.metrics.meteor15.lexicon import Lexicon
from utils.metrics.meteor15.matches import Text, find_matches
from utils.metrics.meteor15.phrases import PhraseTable, phrases
from utils.metrics.meteor15.resources import load_tables

CASES = json.loads((Path(__file__).parent / "cases" / "alignments.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon(load_tables())


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
        ("rating", "shop", False, False),  # the base form is rate, not rat, which is a synonym of shop
        ("us", "uranium", False, False),  # a word of two letters has no base form
        ("ass", "as", False, False),
        ("brighter", "smart", False, True),
        ("maker", "make", False, False),  # the first base form in WordNet is mak
        ("dog", "dog", False, False),  # equal words match exactly only
    ],
)
def test_relations_of_words(lexicon: Lexicon, first: str, second: str, stem: bool, synonym: bool) -> None:
    assert lexicon.relate(first, second) == (stem, synonym)
    assert lexicon.relate(second, first) == (stem, synonym)


def test_prefixes_keep_their_numeric_mark_and_capitalised_ones_are_dropped() -> None:
    assert {"vs", "pp #NUMERIC_ONLY#"} <= load_tables().prefixes
    assert not any(prefix[0] in "#ABN" for prefix in load_tables().prefixes)


def test_alignments_are_those_of_the_jar(lexicon: Lexicon) -> None:
    pairs = [(Text(first.split()), Text(second.split())) for first, second, _ in CASES]
    table = PhraseTable(load_tables().paraphrases, (phrase for _, text in pairs for _, _, phrase in text.phrases))
    forward, back = table.between(phrase for text, _ in pairs for _, _, phrase in text.phrases)
    names = [{name for others in found.values() for name in others} for found in (forward, back)]
    differ = []
    for (prediction, reference), (first, second, expected) in zip(pairs, CASES, strict=True):
        prediction.link(back, names[0])
        reference.link(forward, names[1])
        found = align(len(prediction.tokens), len(reference.tokens), find_matches(prediction, reference, lexicon))
        if [list(match) for match in found] != expected:
            differ.append((first, second))
    assert len(CASES) > 300
    assert differ == []


TOKENS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=9)


@given(TOKENS, TOKENS)
@settings(deadline=None)
def test_an_alignment_uses_each_word_once_and_as_many_words_as_possible(first: list[str], second: list[str]) -> None:
    every = [
        Match(start, 1, position, 1, EXACT)
        for position, word in enumerate(second)
        for start, other in enumerate(first)
        if word == other
    ]
    found = align(len(first), len(second), every)
    assert set(found) <= set(every)
    for side in (0, 2):
        positions = [match[side] for match in found]
        assert len(positions) == len(set(positions))
    assert len(found) == sum(min(first.count(word), second.count(word)) for word in set(first))
    assert 1 <= count_chunks(found) <= len(found) or not found


@given(TOKENS)
@settings(deadline=None)
def test_a_text_aligns_with_itself_in_one_chunk(tokens: list[str]) -> None:
    every = [
        Match(start, 1, position, 1, EXACT)
        for position, word in enumerate(tokens)
        for start, other in enumerate(tokens)
        if word == other
    ]
    found = align(len(tokens), len(tokens), every)
    assert len(found) == len(tokens) and count_chunks(found) == 1


def test_phrases_have_up_to_seven_words() -> None:
    found = phrases([str(number) for number in range(9)])
    assert len(found) == 9 + 8 + 7 + 6 + 5 + 4 + 3
    assert found[:2] == [(0, 1, "0"), (0, 2, "0 1")] and max(length for _, length, _ in found) == 7
