"""What METEOR's ``-norm`` does to a text: tokenise once more, in the way of the Moses tokenizer.

The input is text that the PTB tokenizer has lower-cased, so that case needs no care here.
"""

from __future__ import annotations

import re
from collections.abc import Set

TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": " - "})
# The letters the program knows: Latin of western and central Europe, and Cyrillic. All else stands apart.
LETTER = "[A-Za-zÀ-ÖØ-öø-žЀ-ԯ]"
WORD = "[A-Za-z0-9À-ÖØ-öø-žЀ-ԯ]"
# A hyphen between words is a blank; the second of a-b-c is left, as the pattern has eaten the b.
BETWEEN_WORDS = re.compile(f"({WORD}|[.])-({WORD})")
SPECIAL = re.compile(r"([^A-Za-z0-9À-ÖØ-öø-žЀ-ԯ\s.'`,-])")
DOTS = re.compile(r"(\.{2,})")
COMMA = re.compile(r"(?<![0-9]),|,(?![0-9])")
APOSTROPHES = [
    (re.compile(f"(?<!{LETTER})'(?!{LETTER})"), " ' "),
    (re.compile(f"(?<!{WORD})'(?={LETTER})"), " ' "),
    (re.compile(f"(?<={LETTER})'(?!{LETTER})"), " ' "),
    (re.compile(f"(?<={LETTER})'(?={LETTER})"), " '"),
    (re.compile("(?<=[0-9])'(?=s)"), " '"),
]


def normalize(text: str, prefixes: Set[str]) -> list[str]:
    """METEOR's tokens of a lower-cased text.

    Args:
        text: PTB tokens joined by blanks.
        prefixes: words that keep a full stop (METEOR's list of non-breaking prefixes).
    """
    text = text.translate(TYPOGRAPHIC).replace("--", "-")
    if "-" in text:
        text = BETWEEN_WORDS.sub(r"\1 \2", text)
    text = SPECIAL.sub(r" \1 ", text)
    if "." in text:
        text = DOTS.sub(r" \1 ", text)
    if "," in text:
        text = COMMA.sub(" , ", text)
    text = text.replace("`", "'").replace("''", ' " ')
    if "'" in text:
        for pattern, replacement in APOSTROPHES:
            text = pattern.sub(replacement, text)
    words = text.split()
    if "." not in text:
        return words
    tokens = []
    for word, following in zip(words, [*words[1:], ""], strict=False):
        tokens += _final_stop(word, following, prefixes)
    return tokens


def _final_stop(word: str, following: str, prefixes: Set[str]) -> list[str]:
    stem = word[:-1]
    if not word.endswith(".") or not stem or stem.endswith("."):
        return [word]
    if "." in stem and any(letter.isalpha() for letter in stem):
        return [word.replace(".", "")]  # an acronym: u.s. is us
    if stem in prefixes or "a" <= following[:1] <= "z":
        return [word]
    return [stem, "."]
