"""``Decoding``: beams, length penalty, lengths; eval.py's options, made without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _option(default: float, about: str, minimum: int | None = None) -> Any:
    """A field with its lower bound, as in ``rosa.config.option``, and its text in eval.py's help."""
    return field(default=default, metadata={"minimum": minimum, "help": about})


@dataclass(frozen=True)
class Decoding:
    """How text is generated; the defaults are the published ones.

    Attributes:
        num_beams: beams of the beam search; 1 is greedy.
        length_penalty: a beam's score is divided by its length to this power.
        no_repeat_ngram_size: no n-gram of this size occurs twice, the prompt included (as published); 0 turns this off.
        max_new_tokens: longest output, in tokens.
    """

    num_beams: int = _option(10, "1 is greedy", minimum=1)
    length_penalty: float = _option(0.8, "of the beam search")
    no_repeat_ngram_size: int = _option(4, "0: off; counts the prompt, as published", minimum=0)
    max_new_tokens: int = _option(128, "longest output in tokens", minimum=1)
