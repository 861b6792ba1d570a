"""METEOR's ``-norm``: tokenise a text again, like the Moses tokenizer.

The PTB tokenizer has lower-cased the input, so that case does not matter here.
"""

from __future__ import annotations

import re
from collections.abc import Set

TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": " - "})
# The program's letters: Latin of western and central Europe, and Cyrillic. Other characters become tokens.
LETTERS = "A-Za-zÀ-ÖØ-öø-žЀ-ԯ"
LETTER, NO_LETTER = f"([{LETTERS}])", f"([^{LETTERS}])"
WORD, NO_WORD = f"([{LETTERS}0-9])", f"([^{LETTERS}0-9])"
# As in the program, the patterns consume the characters beside a mark. Of two marks with one character between them
# the second therefore stays: a-b-c becomes "a b-c". A hyphen between words becomes a blank.
BETWEEN_WORDS = re.compile(f"([{LETTERS}0-9.])-{WORD}")
SPECIAL = re.compile(rf"([^{LETTERS}0-9\s.'`,-])")
DOTS = re.compile(r"(\.{2,})")
COMMAS = [
    re.compile(f"({before}),({after})")
    for before, after in (("[^0-9]", "[^0-9]"), ("[0-9]", "[^0-9]"), ("[^0-9]", "[0-9]"))
]
APOSTROPHES = [
    (re.compile(f"{NO_LETTER}'{NO_LETTER}"), r"\1 ' \2"),
    (re.compile(f"{NO_WORD}'{LETTER}"), r"\1 ' \2"),
    (re.compile(f"{LETTER}'{NO_LETTER}"), r"\1 ' \2"),
    (re.compile(f"{LETTER}'{LETTER}"), r"\1 '\2"),
    (re.compile("([0-9])'(s)"), r"\1 '\2"),
]

NUMBER_FOLLOWS = "#NUMERIC_ONLY#"  # marks prefixes that keep their full stop only before a number


def normalize(text: str, prefixes: Set[str]) -> list[str]:
    """METEOR's tokens of a lower-cased text.

    Args:
        text: PTB tokens joined by blanks.
        prefixes: words that keep a full stop (METEOR's list of non-breaking prefixes).
    """
    text = f" {text} ".translate(TYPOGRAPHIC)
    text = SPECIAL.sub(r" \1 ", text)
    if "." in text:
        text = DOTS.sub(r" \1 ", text)
    if "," in text:
        for pattern in COMMAS:
            text = pattern.sub(r"\1 , \2", text)
    if "-" in text:
        text = BETWEEN_WORDS.sub(r"\1 \2", text.replace("--", "-"))
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
    if f"{stem} {NUMBER_FOLLOWS}" in prefixes and "0" <= following[:1] <= "9":
        return [word]
    return [stem, "."]
