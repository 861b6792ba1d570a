"""The tokens that METEOR, ROUGE_L and CIDEr are counted on: those of the Stanford PTB tokenizer 3.4.1.

The official scorer runs it with ``-preserveLines -lowerCase`` over all texts as lines of one file, and drops a
list of punctuation tokens. The patterns are in ``ptb_rules``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from utils.metrics.tokenizers.ptb_rules import DROPPED, NOT_PLAIN, PLAIN, RULES, Change
from utils.metrics.tokenizers.ptb_words import NUMBERED

# What the official scorer drops. The brackets in its list are never met: lower-cased, they are "-lrb-".
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""])

# The ends of a line whose tokens depend on how the next line starts.
_LETTER = r"[^\W\d_]"
OPEN_END = re.compile(
    rf"(?:(?<![^\W_])(?:{_LETTER}|{'|'.join(NUMBERED)})|[^\sA-Za-z]\S*{_LETTER})\.\s*\Z", re.IGNORECASE
)


def _longest(text: str, start: int) -> tuple[int, list[str]]:
    longest, end = 0, start + 1
    change: Change | None = None
    for pattern, rule_change in RULES:
        found = pattern.match(text, start)
        if found and found.end() - start > longest:
            longest = found.end() - start
            end = found.end(1) if pattern.groups else found.end()
            change = rule_change
    token = text[start:end]
    return end, change(token) if change else [token]


def lex(text: str, stop: int | None = None) -> Iterator[str]:
    """Every token of ``text`` that starts before ``stop``, punctuation included, in its own case."""
    position, stop = 0, len(text) if stop is None else stop
    while position < stop:
        blank = DROPPED.match(text, position)
        if blank:
            position = blank.end()
            continue
        plain = PLAIN.match(text, position)
        if plain and plain[0].lower() not in NOT_PLAIN:
            yield plain[0]
            position = plain.end()
            continue
        position, tokens = _longest(text, position)
        yield from tokens


@functools.lru_cache(maxsize=1 << 17)
def tokenize(text: str, following: str = "") -> str:
    """The lower-cased tokens of one line without punctuation, joined by blanks.

    Args:
        text: one line.
        following: the line after it, which decides in rare cases ("point B." before "The …").
    """
    tokens = (token.replace("\u00ad", "").lower() for token in lex(f"{text}\n{following}", len(text)))
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def tokenize_lines(lines: Sequence[str]) -> list[str]:
    """Each line's tokens, joined by blanks, as the official tokenizer reads them from one file."""
    nexts = [*lines[1:], ""]
    return [
        tokenize(line, following) if OPEN_END.search(line) else tokenize(line)
        for line, following in zip(lines, nexts, strict=False)
    ]


def tokenize_groups(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same for groups of lines that follow one another in one file."""
    tokens = iter(tokenize_lines([line for group in groups for line in group]))
    return [[next(tokens) for _ in group] for group in groups]
