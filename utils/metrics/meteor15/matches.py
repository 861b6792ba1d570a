"""All matches between two texts, in the order in which METEOR's alignment tries them."""

from __future__ import annotations

from collections.abc import Sequence, Set

from utils.metrics.meteor15.align import EXACT, PARAPHRASE, STEM, SYNONYM, Match
from utils.metrics.meteor15.lexicon import Words
from utils.metrics.meteor15.phrases import Paraphrases, phrases


class Text:
    """A text's tokens with what the matchers ask of it."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        self.phrases = phrases(self.tokens)
        self.relations: dict[str, tuple[list[int], list[int], list[int]]] = {}  # of other texts' words, see _related
        self.paraphrased: list[tuple[int, int, list[str]]] = []  # phrases that have paraphrases on the other side
        self.places: dict[str, list[tuple[int, int]]] = {}  # phrases that are paraphrases: starts and length

    def link(self, paraphrases: Paraphrases, known: Set[str]) -> None:
        """Note which phrases have ``paraphrases``, and where those of ``known`` are, which the other side asks for."""
        self.paraphrased = []
        self.places = {}
        for start, length, phrase in self.phrases:
            if phrase in paraphrases:
                self.paraphrased.append((start, length, paraphrases[phrase]))
            if phrase in known:
                self.places.setdefault(phrase, []).append((start, length))


def find_matches(prediction: Text, reference: Text, words: Words) -> list[Match]:
    """Exact, stem, synonym and paraphrase matches.

    A pair of words may match in several ways. A paraphrase that the table lists in both directions counts as two
    matches, so that it never stands alone: the official program does so, and alignments depend on it.
    """
    exact: list[Match] = []
    stems: list[Match] = []
    synonyms: list[Match] = []
    relations = prediction.relations
    for place, word in enumerate(reference.tokens):
        found = relations.get(word)
        if found is None:
            found = relations[word] = _related(prediction, word, words)
        for matches, starts, matcher in zip((exact, stems, synonyms), found, (EXACT, STEM, SYNONYM), strict=True):
            if starts:
                matches += [Match(start, 1, place, 1, matcher) for start in starts]
    return exact + stems + synonyms + _paraphrases(prediction, reference)


def _related(prediction: Text, word: str, words: Words) -> tuple[list[int], list[int], list[int]]:
    """Where the prediction has ``word`` itself, words of its stem, and synonyms of it."""
    exact: list[int] = []
    stems: list[int] = []
    synonyms: list[int] = []
    for start, other in enumerate(prediction.tokens):
        if word == other:
            exact.append(start)
            continue
        stem, synonym = words.relate(word, other)
        if stem:
            stems.append(start)
        if synonym:
            synonyms.append(start)
    return exact, stems, synonyms


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
