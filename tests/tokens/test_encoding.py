"""Pairs as tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.data import pair
from utils.errors import UserError
from utils.models.loading import load_tokenizer
from utils.tokens.encoding import encode


def test_long_samples_are_cut_and_counted(small_model: Path) -> None:
    tokenizer = load_tokenizer(str(small_model))
    examples = [pair("name[A]", "A is a pub. " * 20), pair("name[A]", "A.")]
    encoded = encode(examples, tokenizer, 30)
    assert encoded.cut == 1
    assert len(encoded.samples[0].ids) == 30
    prompt = tokenizer(examples[0].prompt)["input_ids"]
    assert encoded.samples[0].ids == (prompt + tokenizer(examples[0].target)["input_ids"])[:30]
    with pytest.raises(UserError, match="no room for the target"):
        encode(examples, tokenizer, 5)
