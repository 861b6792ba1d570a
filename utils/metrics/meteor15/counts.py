"""METEOR's statistics of each prediction against its best reference, and the score from their sum."""

from __future__ import annotations

from collections.abc import Sequence

from utils.metrics.meteor15.align import Match, align, count_chunks
from utils.metrics.meteor15.lexicon import Lexicon
from utils.metrics.meteor15.matches import Text, find_matches
from utils.metrics.meteor15.normalize import normalize
from utils.metrics.meteor15.phrases import Paraphrases, PhraseTable
from utils.metrics.meteor15.resources import load_tables

# The paper's parameters for English. WEIGHTS: exact, stem, synonym and paraphrase matches.
WEIGHTS = (1.0, 0.6, 0.8, 0.6)
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75

# First index of each statistic. They are in pairs, the prediction's then the reference's; CHUNKS is a single one.
LENGTH, FUNCTION, MATCHES, CHUNKS, MATCHED = 0, 2, 4, 20, 21
STATISTICS = 23


def combine(totals: Sequence[float]) -> float:
    """METEOR from the statistics of one pair of texts or from their sum over pairs."""
    precision, recall = (_weighted_matches(totals, side) for side in (0, 1))
    if precision == 0 or recall == 0:
        return 0.0
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    fragmentation = totals[CHUNKS] / ((totals[MATCHED] + totals[MATCHED + 1]) / 2)
    return float(mean * (1 - GAMMA * fragmentation**BETA))


def _weighted_matches(totals: Sequence[float], side: int) -> float:
    function, length = totals[FUNCTION + side], totals[LENGTH + side]
    words = DELTA * (length - function) + (1 - DELTA) * function
    matched = sum(
        weight * (DELTA * totals[index + side] + (1 - DELTA) * totals[index + 2 + side])
        for weight, index in zip(WEIGHTS, range(MATCHES, CHUNKS, 4), strict=True)
    )
    return matched / words if words else 0.0


def _values(paraphrases: Paraphrases) -> set[str]:
    return {phrase for others in paraphrases.values() for phrase in others}


class Comparer:
    """Compares predictions with references. It keeps its results, so that each text is compared once.

    Args:
        groups: the references of each item, lower-cased PTB tokens joined by blanks.
    """

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self._tables = load_tables()
        self._lexicon = Lexicon(self._tables)
        texts: dict[str, Text] = {}
        self._groups = [[self._text(line, texts) for line in group] for group in groups]
        self._texts = list(texts.values())
        phrases = (phrase for text in self._texts for _, _, phrase in text.phrases)
        self._phrase_table = PhraseTable(self._tables.paraphrases, phrases)
        self._statistics: dict[tuple[int, str], list[float]] = {}  # of all systems so far, by item and line

    def _text(self, line: str, texts: dict[str, Text]) -> Text:
        if line not in texts:
            texts[line] = Text(normalize(line, self._tables.prefixes))
        return texts[line]

    def statistics(self, lines: Sequence[str]) -> list[list[float]]:
        """Lengths, function words, matches of each matcher, chunks and matched words of each prediction.

        Args:
            lines: lower-cased PTB tokens joined by blanks, one text per item.
        """
        todo = {item: line for item, line in enumerate(lines) if (item, line) not in self._statistics}
        texts: dict[str, Text] = {}
        for line in todo.values():
            self._text(line, texts)
        phrases = (phrase for text in texts.values() for _, _, phrase in text.phrases)
        from_references, from_predictions = self._phrase_table.between(phrases)
        in_predictions, in_references = _values(from_references), _values(from_predictions)
        for text in texts.values():
            text.link(from_predictions, in_predictions)
        for text in self._texts:
            text.link(from_references, in_references)
        for item, line in todo.items():
            self._statistics[item, line] = self._best(texts[line], self._groups[item])
        return [self._statistics[item, line] for item, line in enumerate(lines)]

    def _best(self, prediction: Text, references: Sequence[Text]) -> list[float]:
        """The statistics against the reference with the highest score; of equal ones, the first."""
        return max((self._compare(prediction, reference) for reference in references), key=combine)

    def _compare(self, prediction: Text, reference: Text) -> list[float]:
        matches = find_matches(prediction, reference, self._lexicon)
        alignment = align(len(prediction.tokens), len(reference.tokens), matches)
        row = [0.0] * STATISTICS
        for side, tokens in enumerate((prediction.tokens, reference.tokens)):
            row[LENGTH + side] = len(tokens)
            row[FUNCTION + side] = sum(token in self._tables.function_words for token in tokens)
        for match in alignment:
            self._count(row, match, prediction, reference)
        row[CHUNKS] = count_chunks(alignment)
        # There is no fragmentation if one chunk covers both texts completely.
        if row[CHUNKS] == 1 and row[MATCHED] == row[LENGTH] and row[MATCHED + 1] == row[LENGTH + 1]:
            row[CHUNKS] = 0
        return row

    def _count(self, row: list[float], match: Match, prediction: Text, reference: Text) -> None:
        spans = (
            prediction.tokens[match.start : match.start + match.length],
            reference.tokens[match.reference_start : match.reference_start + match.reference_length],
        )
        for side, span in enumerate(spans):
            row[MATCHED + side] += len(span)
            for token in span:
                kind = 2 if token in self._tables.function_words else 0
                row[MATCHES + 4 * match.matcher + kind + side] += 1
