"""The tokens of BLEU and NIST: those of NIST's mteval-v13a script, from sacrebleu's implementation.

The official scorer passes its texts to that script in SGML files without escaping them. The script therefore reads
``&amp;`` as ``&``, drops ``<skipped>``, and reads tags inside a text as tags of the file: ``</seg>`` ends a text,
``</doc>`` ends a document. METEOR, ROUGE_L and CIDEr read the texts unchanged.
"""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence

from utils.errors import UserError

# The script lower-cases ASCII only: É stays É.
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}  # in the order in which they are replaced
_NEW_ENTITY = re.compile("([&<])(quot|amp|lt|gt|skipped)([;>])", re.IGNORECASE)
_END_OF_TEXT = re.compile(r"</seg\s*>", re.IGNORECASE)
# Tags that make the script fail: the end of a document or file, a second text in one, an empty reference.
_FATAL = {
    "prediction": re.compile(r"</(?:doc|tstset)\s*>|</seg>.*<seg", re.IGNORECASE | re.DOTALL),
    "reference": re.compile(r"</(?:doc|refset)\s*>|</seg>.*<seg|^\s*</seg>", re.IGNORECASE | re.DOTALL),
}


def read_as_sgml(text: str, kind: str, item: int) -> str:
    """``text`` as the script reads it from the official scorer's SGML file: up to a ``</seg>`` inside the text.

    Args:
        kind: ``prediction`` or ``reference``; their files have different tags.
        item: the number of the item, from 1, for the message.

    Raises:
        UserError: a tag in the text would stop the official scorer or make it mix up texts.
    """
    if "</" not in text:
        return text
    text = _END_OF_TEXT.sub("</seg>", text)
    if found := _FATAL[kind].search(text):
        raise UserError(
            f"the {kind} of item {item} has {found[0][:20]!r} in it. The official scorer of BLEU and NIST reads this "
            f"as a tag of its own file and fails. Write &lt; for <, which it reads as <: {text[:100]!r}"
        )
    return text.partition("</seg>")[0]


def normalize(text: str) -> str:
    """``text`` on one line, with SGML entities replaced and A-Z lower-cased. Other letters keep their case."""
    text = " ".join(text.split("\n")).replace("<skipped>", "")
    if "&" in text:
        for entity, character in _ENTITIES.items():
            text = text.replace(entity, character)
    # "&amp;lt;" has become "&lt;". The script makes three tokens of it, but sacrebleu would replace it again.
    return _NEW_ENTITY.sub(r"\1 \2 \3", text).translate(_ASCII_LOWER)


@functools.cache
def _tokenizer():  # type: ignore[no-untyped-def]
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def tokenize(text: str) -> list[str]:
    """The lower-cased mteval-v13a tokens of ``text``."""
    return _tokenizer()(normalize(text)).split()


def count_ngrams(tokens: Sequence[str], order: int) -> list[Counter[tuple[str, ...]]]:
    """N-gram counts, one Counter for each n from 1 to ``order``."""
    return [Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, order + 1)]
