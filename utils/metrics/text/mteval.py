"""The tokens that BLEU and NIST are counted on: those of NIST's mteval-v13a script, as sacrebleu has them."""

from __future__ import annotations

import functools
import string
from collections import Counter
from collections.abc import Sequence

# The script lower-cases ASCII only: É and é stay two letters.
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def lower_ascii(text: str) -> str:
    """``text`` with A-Z lower-cased and every other letter left alone."""
    return text.translate(_ASCII_LOWER)


@functools.cache
def _tokenizer():  # type: ignore[no-untyped-def]
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def tokenize(text: str) -> list[str]:
    """The lower-cased mteval-v13a tokens of ``text``."""
    return _tokenizer()(lower_ascii(text)).split()


def count_ngrams(tokens: Sequence[str], order: int) -> list[Counter[tuple[str, ...]]]:
    """N-gram counts of each length 1 … ``order``, one Counter a length."""
    return [Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, order + 1)]
