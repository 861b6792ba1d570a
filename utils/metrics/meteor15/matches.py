"""All matches between two texts, in the order in which METEOR's alignment tries them."""

from __future__ import annotations

from collections.abc import Sequence

from utils.metrics.meteor15.align import EXACT, PARAPHRASE, STEM, SYNONYM, Match
from utils.metrics.meteor15.phrases import Paraphrases, phrases
from utils.metrics.meteor15.words import Words


class Text:
    """A text's tokens with what the matchers ask of it."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        self.phrases = phrases(self.tokens)
        self.places: dict[str, list[tuple[int, int]]] = {}  # phrase to its starts and its length
        for start, length, phrase in self.phrases:
            self.places.setdefault(phrase, []).append((start, length))
        self.paraphrased: list[tuple[int, int, list[str]]] = []  # phrases that have paraphrases on the other side

    def link(self, paraphrases: Paraphrases) -> None:
        """Note which of the text's phrases have paraphrases."""
        self.paraphrased = [
            (start, length, paraphrases[phrase]) for start, length, phrase in self.phrases if phrase in paraphrases
        ]


def find_matches(prediction: Text, reference: Text, words: Words) -> list[Match]:
    """Exact, stem, synonym and paraphrase matches.

    A pair of words may match in several ways. A paraphrase that the table lists in both directions counts as two
    matches, so that it never stands alone: the official program does so, and alignments depend on it.
    """
    exact: list[Match] = []
    stems: list[Match] = []
    synonyms: list[Match] = []
    places = prediction.places
    others = [(word, places[word]) for word in dict.fromkeys(prediction.tokens)]
    for place, word in enumerate(reference.tokens):
        known = words.related(word)
        for other, starts in others:
            if word == other:
                exact += [Match(start, 1, place, 1, EXACT) for start, _ in starts]
                continue
            relation = known.get(other) or words.relate(word, other)
            if relation[0]:
                stems += [Match(start, 1, place, 1, STEM) for start, _ in starts]
            if relation[1]:
                synonyms += [Match(start, 1, place, 1, SYNONYM) for start, _ in starts]
    # The words of the prediction were taken by first occurrence; repeated ones can stand out of order.
    for found in (stems, synonyms):
        found.sort(key=lambda match: (match.reference_start, match.start))
    return exact + stems + synonyms + _paraphrases(prediction, reference)


def _paraphrases(prediction: Text, reference: Text) -> list[Match]:
    found = []
    for place, length, others in reference.paraphrased:
        for other in others:
            for start, size in prediction.places.get(other, ()):
                found.append(Match(start, size, place, length, PARAPHRASE))
    for start, size, others in prediction.paraphrased:
        for other in others:
            for place, length in reference.places.get(other, ()):
                found.append(Match(start, size, place, length, PARAPHRASE))
    return found
