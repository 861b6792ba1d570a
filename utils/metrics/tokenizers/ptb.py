"""The tokens of METEOR, ROUGE_L and CIDEr: those of the Stanford PTB tokenizer 3.4.1.

The official scorer runs it with ``-preserveLines -lowerCase`` on one file that has a text per line, and then removes
punctuation tokens. The patterns are in ``ptb_rules``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

from utils.metrics.tokenizers.ptb_rules import DROPPED, NOT_PLAIN, PLAIN, RULES, Change
from utils.metrics.tokenizers.ptb_words import NUMBERED

# Tokens that the official scorer removes. It also lists "-LRB-" and the like, but lower-cased tokens never match them.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""])

# Ends of a line whose tokens depend on the start of the next line.
_LETTER = r"[^\W\d_]"
OPEN_END = re.compile(
    rf"(?:(?<![^\W_])(?:{_LETTER}|{'|'.join(NUMBERED)})|[^\sA-Za-z]\S*{_LETTER})\.\s*\Z", re.IGNORECASE
)


def _longest_match(text: str, start: int) -> tuple[int, list[str]]:
    """Where the token at ``start`` ends, and its tokens, by the rule with the longest match."""
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


def lex(text: str, stop: int) -> Iterator[str]:
    """Every token of ``text`` that starts before ``stop``, with punctuation, case unchanged."""
    position = 0
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
        position, tokens = _longest_match(text, position)
        yield from tokens


@functools.lru_cache(maxsize=1 << 17)
def tokenize(text: str, following: str = "") -> str:
    """The lower-cased tokens of one line without punctuation, joined by blanks.

    Args:
        text: one line.
        following: the next line, which matters in rare cases ("point B." before "The …").
    """
    tokens = (token.replace("\u00ad", "").lower() for token in lex(f"{text}\n{following}", len(text)))
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def tokenize_lines(lines: Sequence[str]) -> list[str]:
    """The tokens of each line, joined by blanks, as if the lines were one file of the official tokenizer."""
    nexts = [*lines[1:], ""]
    return [
        tokenize(line, following) if OPEN_END.search(line) else tokenize(line)
        for line, following in zip(lines, nexts, strict=False)
    ]


def tokenize_groups(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """``tokenize_lines`` for groups of lines, which follow one another in one file."""
    tokens = iter(tokenize_lines([line for group in groups for line in group]))
    return [[next(tokens) for _ in group] for group in groups]
