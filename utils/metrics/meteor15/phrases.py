"""Paraphrases that can occur between one set of predictions and one set of references.

Of the table's 5 million pairs some thousand have one phrase among the predictions and the other among the
references. They are found at once, by hash, and kept as dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from utils.metrics.meteor15.resources import hash_phrases

LONGEST = 7  # words of the longest phrase in the table

Paraphrases = dict[str, list[str]]


def phrases(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """Start, length in words and text of each phrase of up to LONGEST words, by start, then by length."""
    size = len(tokens)
    return [
        (start, length, " ".join(tokens[start : start + length]))
        for start in range(size)
        for length in range(1, min(LONGEST, size - start) + 1)
    ]


class PhraseTable:
    """The paraphrase table restricted to the phrases of one test set's references.

    Args:
        pairs: hashes of paraphrases, uint64 of shape (pairs, 2), sorted by the first column.
        references: every phrase of the references.
    """

    def __init__(self, pairs: np.ndarray, references: Iterable[str]) -> None:
        self._pairs = pairs
        self._names = list(dict.fromkeys(references))
        self._hashes = hash_phrases(self._names)
        self._order = np.argsort(self._hashes)
        self._rows = self._rows_of(self._hashes)

    def _rows_of(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Table rows that start with one of ``hashes``: the index of the hash and the paraphrase's hash, row by row."""
        first = np.searchsorted(self._pairs[:, 0], hashes, side="left")
        counts = np.searchsorted(self._pairs[:, 0], hashes, side="right") - first
        owners = np.repeat(np.arange(len(hashes)), counts)
        offsets = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owners, self._pairs[np.repeat(first, counts) + offsets, 1]

    def between(self, predictions: Iterable[str]) -> tuple[Paraphrases, Paraphrases]:
        """Paraphrases among the predictions' phrases for each of the references', and the other way round.

        The paraphrases of a phrase stand in the table's order, on which the alignment depends.
        """
        names = list(dict.fromkeys(predictions))
        hashes = hash_phrases(names)
        owners, found = self._rows_of(hashes)
        from_predictions = _named(owners, found, names, self._hashes[self._order], self._names, self._order)
        order = np.argsort(hashes)
        from_references = _named(*self._rows, self._names, hashes[order], names, order)
        return from_references, from_predictions


def _named(
    owners: np.ndarray,
    found: np.ndarray,
    names: list[str],
    known: np.ndarray,
    known_names: list[str],
    order: np.ndarray,
) -> Paraphrases:
    """Rows whose paraphrase is among the sorted hashes ``known``, as names; ``order`` leads to ``known_names``."""
    named: Paraphrases = {}
    if not len(known):
        return named
    places = np.minimum(np.searchsorted(known, found), len(known) - 1)
    for row in np.flatnonzero(known[places] == found):
        named.setdefault(names[owners[row]], []).append(known_names[order[places[row]]])
    return named
