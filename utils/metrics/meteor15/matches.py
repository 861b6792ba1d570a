"""All matches between two texts, in the order in which METEOR's alignment tries them."""

from __future__ import annotations

from collections.abc import Sequence, Set

from utils.metrics.meteor15.align import EXACT, PARAPHRASE, STEM, SYNONYM, Match
from utils.metrics.meteor15.lexicon import Lexicon
from utils.metrics.meteor15.phrases import Paraphrases, phrases


class Text:
    """A text's tokens and phrases, and what the matchers find out about them."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tuple(tokens)
        self.phrases = phrases(self.tokens)
        self.relations: dict[str, tuple[list[int], list[int], list[int]]] = {}  # by words of other texts, see _related
        self.paraphrased: list[tuple[int, int, list[str]]] = []  # start, length and paraphrases in the other texts
        self.spans: dict[str, list[tuple[int, int]]] = {}  # phrase to start and length, if it is a paraphrase

    def link(self, paraphrases: Paraphrases, targets: Set[str]) -> None:
        """Find the phrases of this text that are keys of ``paraphrases``, and the positions of those in ``targets``."""
        self.paraphrased = []
        self.spans = {}
        for start, length, phrase in self.phrases:
            if phrase in paraphrases:
                self.paraphrased.append((start, length, paraphrases[phrase]))
            if phrase in targets:
                self.spans.setdefault(phrase, []).append((start, length))


def find_matches(prediction: Text, reference: Text, lexicon: Lexicon) -> list[Match]:
    """Exact, stem, synonym and paraphrase matches.

    A pair of words may match in several ways. A paraphrase that the table lists in both directions is two matches, as
    in the official program. The two overlap, which changes the alignment (see ``align``).
    """
    exact: list[Match] = []
    stems: list[Match] = []
    synonyms: list[Match] = []
    relations = prediction.relations
    for position, word in enumerate(reference.tokens):
        related = relations.get(word)
        if related is None:
            related = relations[word] = _related(prediction, word, lexicon)
        for matches, starts, matcher in zip((exact, stems, synonyms), related, (EXACT, STEM, SYNONYM), strict=True):
            if starts:
                matches += [Match(start, 1, position, 1, matcher) for start in starts]
    return exact + stems + synonyms + _paraphrases(prediction, reference)


def _related(prediction: Text, word: str, lexicon: Lexicon) -> tuple[list[int], list[int], list[int]]:
    """Positions in the prediction of ``word`` itself, of words with its stem, and of its synonyms."""
    exact: list[int] = []
    stems: list[int] = []
    synonyms: list[int] = []
    for start, other in enumerate(prediction.tokens):
        if word == other:
            exact.append(start)
            continue
        stem, synonym = lexicon.relate(word, other)
        if stem:
            stems.append(start)
        if synonym:
            synonyms.append(start)
    return exact, stems, synonyms


def _paraphrases(prediction: Text, reference: Text) -> list[Match]:
    matches = []
    for reference_start, reference_length, others in reference.paraphrased:
        for other in others:
            for start, length in prediction.spans.get(other, ()):
                matches.append(Match(start, length, reference_start, reference_length, PARAPHRASE))
    for start, length, others in prediction.paraphrased:
        for other in others:
            for reference_start, reference_length in reference.spans.get(other, ()):
                matches.append(Match(start, length, reference_start, reference_length, PARAPHRASE))
    return matches
