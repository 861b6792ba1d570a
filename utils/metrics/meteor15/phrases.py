"""Paraphrases between one set of predictions and one set of references.

Of the 5 million pairs in the table, a few thousand have one phrase in the predictions and the other in the
references. They are found together, by hash, and returned as dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from utils.metrics.meteor15.resources import hash_phrases

LONGEST = 7  # words of the longest phrase in the table

Paraphrases = dict[str, list[str]]


def phrases(tokens: Sequence[str]) -> list[tuple[int, int, str]]:
    """Start, length in words and text of each phrase of up to LONGEST words, sorted by start and length."""
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
        """For each table row whose phrase is in ``hashes``: the index in ``hashes``, and the paraphrase's hash."""
        first = np.searchsorted(self._pairs[:, 0], hashes, side="left")
        counts = np.searchsorted(self._pairs[:, 0], hashes, side="right") - first
        owners = np.repeat(np.arange(len(hashes)), counts)
        offsets = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        return owners, self._pairs[np.repeat(first, counts) + offsets, 1]

    def between(self, predictions: Iterable[str]) -> tuple[Paraphrases, Paraphrases]:
        """For each phrase of the references its paraphrases in the predictions, and the reverse.

        Paraphrases are in the order of the table, because the alignment depends on it.
        """
        names = list(dict.fromkeys(predictions))
        hashes = hash_phrases(names)
        rows = self._rows_of(hashes)
        from_predictions = _select(*rows, names, self._hashes[self._order], self._names, self._order)
        order = np.argsort(hashes)
        from_references = _select(*self._rows, self._names, hashes[order], names, order)
        return from_references, from_predictions


def _select(
    owners: np.ndarray,
    paraphrases: np.ndarray,
    names: list[str],
    targets: np.ndarray,
    target_names: list[str],
    order: np.ndarray,
) -> Paraphrases:
    """The rows whose paraphrase is in ``targets``, as texts.

    Args:
        owners, paraphrases: rows of the table, see ``PhraseTable._rows_of``.
        names: texts of the phrases that ``owners`` indexes.
        targets: sorted hashes.
        target_names, order: the text of ``targets[i]`` is ``target_names[order[i]]``.
    """
    selected: Paraphrases = {}
    if not len(targets):
        return selected
    indices = np.minimum(np.searchsorted(targets, paraphrases), len(targets) - 1)
    for row in np.flatnonzero(targets[indices] == paraphrases):
        selected.setdefault(names[owners[row]], []).append(target_names[order[indices[row]]])
    return selected
