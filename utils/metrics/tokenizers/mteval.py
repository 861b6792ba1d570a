"""The tokens that BLEU and NIST are counted on: those of NIST's mteval-v13a script, as sacrebleu has them.

The official scorer hands its texts to that script in SGML files, without escaping them. So the script reads
``&amp;`` as ``&`` and drops ``<skipped>``, and what looks like the file's own tags is taken for them: ``</seg>``
ends a text, ``</doc>`` a file. METEOR, ROUGE_L and CIDEr get the texts as they are.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence

from utils.errors import UserError

# The script lower-cases ASCII only: É and é stay two letters.
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}  # in the order in which they are replaced
_LEFT = re.compile("([&<])(quot|amp|lt|gt|skipped)([;>])", re.IGNORECASE)
_END_OF_TEXT = re.compile(r"</seg\s*>", re.IGNORECASE)
_FATAL = {  # the ends of what encloses a text, and a new text after its end; that of a reference must leave something
    "prediction": re.compile(r"</(?:doc|tstset)\s*>|</seg>.*<seg", re.IGNORECASE | re.DOTALL),
    "reference": re.compile(r"</(?:doc|refset)\s*>|</seg>.*<seg|^\s*</seg>", re.IGNORECASE | re.DOTALL),
}


def as_read(text: str, kind: str, item: int) -> str:
    """``text`` as the script reads it from the official scorer's file: it ends where it says ``</seg>``.

    Args:
        kind: ``prediction`` or ``reference``, whose files have tags of their own.
        item: its number from 1, for the message.

    Raises:
        UserError: it has a tag with which the official scorer stops, or takes one text for another.
    """
    if "</" not in text:
        return text
    text = _END_OF_TEXT.sub("</seg>", text)
    if found := _FATAL[kind].search(text):
        raise UserError(
            f"the {kind} of item {item} has {found[0][:20]!r} in it, which the official scorer of BLEU and NIST takes "
            f"for tags of its own file and cannot score. Write &lt; for <, which it reads as <: {text[:100]!r}"
        )
    return text.partition("</seg>")[0]


def normalize(text: str) -> str:
    """``text`` with SGML's entities replaced, on one line, and A-Z lower-cased, every other letter left alone."""
    text = " ".join(text.split("\n")).replace("<skipped>", "")
    if "&" in text:
        for entity, character in _ENTITIES.items():
            text = text.replace(entity, character)
    # what looks like an entity now is none, but sacrebleu would replace it: the script makes three tokens of it
    return _LEFT.sub(r"\1 \2 \3", text).translate(_ASCII_LOWER)


@functools.cache
def _tokenizer():  # type: ignore[no-untyped-def]
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def tokenize(text: str) -> list[str]:
    """The lower-cased mteval-v13a tokens of ``text``."""
    return _tokenizer()(normalize(text)).split()


def count_ngrams(tokens: Sequence[str], order: int) -> list[Counter[tuple[str, ...]]]:
    """N-gram counts of each length 1 … ``order``, one Counter a length."""
    return [Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, order + 1)]
