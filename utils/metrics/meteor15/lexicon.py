"""Matches of two words: the same stem (Porter's English Snowball stemmer) or a common WordNet synonym set."""

from __future__ import annotations

import functools
from collections.abc import Callable

from utils.errors import UserError
from utils.metrics.meteor15.resources import Tables

# Detachment rules of WordNet's ``morphy`` for nouns, verbs and adjectives: an ending and its replacement.
DETACHMENTS = [
    *[("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man")],
    *[("ies", "y"), ("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e")],
    *[("ing", ""), ("er", ""), ("est", ""), ("er", "e"), ("est", "e")],
]


@functools.cache
def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.snowball import SnowballStemmer
    except ValueError as error:  # nltk searches for a download folder and finds none
        raise UserError(f"METEOR's stemmer from nltk does not load ({error}): set HOME to a folder") from None
    stem: Callable[[str], str] = SnowballStemmer("english").stem
    return stem


class Lexicon:
    """Relations between words. Each is computed once and kept."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._stems: dict[str, str] = {}
        self._sets: dict[str, frozenset[str]] = {}
        self._related: dict[str, dict[str, tuple[bool, bool]]] = {}

    def stem(self, word: str) -> str:
        """The word's Snowball stem."""
        if word not in self._stems:
            self._stems[word] = _stemmer()(word)
        return self._stems[word]

    def synonym_sets(self, word: str) -> frozenset[str]:
        """The synonym sets of the word and of its base form: an irregular one, or the first that WordNet contains."""
        if word not in self._sets:
            all_sets = self._tables.synonym_sets
            sets = [all_sets.get(form, frozenset()) for form in (word, *self._bases(word))]
            self._sets[word] = frozenset().union(*sets)
        return self._sets[word]

    def _bases(self, word: str) -> tuple[str, ...]:
        if word in self._tables.irregular:
            return self._tables.irregular[word]
        if len(word) <= 2 or word.endswith("ss"):
            return ()
        for ending, replacement in DETACHMENTS:
            if word.endswith(ending) and len(word) > len(ending):
                base = word.removesuffix(ending) + replacement
                if base in self._tables.synonym_sets:
                    return (base,)
        return ()

    def related(self, word: str) -> dict[str, tuple[bool, bool]]:
        """Other words, and whether they match ``word`` by stem and by synonym. ``relate`` adds entries."""
        return self._related.setdefault(word, {})

    def relate(self, word: str, other: str) -> tuple[bool, bool]:
        """Whether two words match by stem and by synonym. Both are False for equal words, which match exactly."""
        known = self.related(word)
        if other not in known:
            same = word == other
            stem = not same and self.stem(word) == self.stem(other)
            synonym = not same and not self.synonym_sets(word).isdisjoint(self.synonym_sets(other))
            known[other] = (stem, synonym)
        return known[other]
