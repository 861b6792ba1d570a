"""Blocks: every token predicted once, in order, with its characters; prompts cut to fit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from utils.data import Example
from utils.errors import UserError
from utils.generation.prompts import shorten
from utils.models.loading import load_model, load_tokenizer
from utils.models.losses import evaluate_losses
from utils.models.token_loss import TokenLoss
from utils.tokens.batches import Collator, epoch_batches
from utils.tokens.packing import pack

TOKENIZER = load_tokenizer("tiny")
EOS = TOKENIZER.eos_token_id

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
threads = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5)


def document(question: str, *answers: str) -> list[Example]:
    """A question's examples as ELI5's source yields them."""
    return [Example(question, question, f" {answer}", answer) for answer in answers]


def stream_of(documents: list[list[Example]]) -> list[int]:
    """The tokens that generation would see, document by document."""
    ids: list[int] = []
    for examples in documents:
        for text in (examples[0].prompt, *(example.target for example in examples)):
            ids += TOKENIZER(text, add_special_tokens=False)["input_ids"]
        ids.append(EOS)
    return ids


@settings(deadline=None, max_examples=60)
@given(threads, st.integers(2, 40))
def test_every_token_is_predicted_once_in_order_and_ends_are_kept(found: list[Any], block_size: int) -> None:
    documents = [document(question, *answers) for question, answers in found]
    stream = stream_of(documents)
    encoded = pack(documents, TOKENIZER, block_size)
    blocks = [list(sample.ids) for sample in encoded.samples]
    assert all(len(block) == block_size for block in blocks[:-1]) and 2 <= len(blocks[-1]) <= block_size
    batch = Collator(EOS, "all")(encoded, range(len(encoded)))
    assert batch.labels.tolist() == stream[1:]
    assert batch.input_ids.flatten()[batch.positions].tolist() == stream[:-1]
    assert sum(encoded.loss_tokens(i, "all") for i in range(len(encoded))) == len(stream) - 1
    assert encoded.describe()["tokens"] == len(stream) and encoded.describe()["documents"] == len(documents)
    written = sum(len(examples[0].prompt) + sum(len(e.target) for e in examples) for examples in documents)
    first = TOKENIZER(documents[0][0].prompt, return_offsets_mapping=True)["offset_mapping"]
    # a prompt of one token has that token's offsets without the blanks after it
    unpredicted = first[0][1] if len(first) > 1 else len(documents[0][0].prompt)
    assert sum(sample.characters for sample in encoded.samples) == written - unpredicted


def test_characters_go_with_their_tokens() -> None:
    """Blocks of two tokens have one label each, so that the characters of each token can be told."""
    tokens = TOKENIZER.convert_ids_to_tokens(TOKENIZER("ab 😀 é")["input_ids"])
    assert tokens[0] == "ab" and len(tokens) == 8  # then a blank, four bytes of the emoji, a blank, é
    encoded = pack([[Example("", "ab 😀 é", " x", "x")]], TOKENIZER, 2)
    counts = [sample.characters for sample in encoded.samples]
    assert counts[:7] == [1, 1, 0, 0, 0, 1, 1]
    assert sum(counts[7:]) == 2 and counts[-1] == 0  # " x", and eos


def test_characters_that_a_tokenizer_drops_count_too() -> None:
    tokenizer = load_tokenizer("tiny")
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    assert tokenizer(" ab  ", return_offsets_mapping=True)["offset_mapping"][-1] == (1, 3)
    encoded = pack([[Example("", "ab", " ab  ", "")]], tokenizer, 2)
    assert sum(sample.characters for sample in encoded.samples) == 5


def test_metrics_of_blocks_are_those_of_the_plain_way(small_model: Path) -> None:
    """Loss, bits per token and per character against one block at a time through the model's own forward."""
    model = load_model(str(small_model), dropout=0.0)
    documents = [document("Why?", "Because it is, after all, a rather long story.", "Né 😀."), document("How?", "So.")]
    encoded = pack(documents, TOKENIZER, 8)
    assert len(encoded) > 3
    losses = evaluate_losses(TokenLoss(model), encoded, EOS, 3).metrics("all")
    stream, nats = stream_of(documents), 0.0
    with torch.no_grad():
        for start in range(0, len(stream) - 1, 7):
            block = torch.tensor([stream[start : start + 8]])
            nats += model(input_ids=block, labels=block).loss.item() * (block.shape[1] - 1)
    written = sum(len(e.target) for examples in documents for e in examples) + len("Why?How?")
    characters = written - len(TOKENIZER.decode(stream[:1]))
    assert losses["loss"] == losses["loss_all"] == pytest.approx(nats / (len(stream) - 1), abs=1e-5)
    assert losses["perplexity"] == pytest.approx(math.exp(nats / (len(stream) - 1)), rel=1e-5)
    assert losses["bits_per_token_all"] == pytest.approx(nats / math.log(2) / (len(stream) - 1), abs=1e-5)
    assert losses["bits_per_char_all"] == pytest.approx(nats / math.log(2) / characters, abs=1e-5)
    assert not [name for name in losses if "target" in name]


def test_a_tokenizer_without_characters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(TOKENIZER), "is_fast", property(lambda self: False))
    with pytest.raises(UserError, match="needs a fast tokenizer"):
        pack([document("Why?", "So.")], TOKENIZER, 8)


def test_an_epoch_has_each_block_once() -> None:
    encoded = pack([document(f"Why {i}?", "So it is.") for i in range(50)], TOKENIZER, 8)
    lengths = [len(sample.ids) for sample in encoded.samples]
    batches = epoch_batches(lengths, 4, 50, seed=0, epoch=0)
    assert sorted(i for batch in batches for i in batch) == list(range(len(encoded)))


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=200), st.integers(4, 60))
def test_long_prompts_lose_their_beginning_only(prompt: str, room: int) -> None:
    (short,) = shorten([prompt], TOKENIZER, room)
    size = len(TOKENIZER(prompt)["input_ids"])
    assert prompt.endswith(short)
    assert len(TOKENIZER(short)["input_ids"]) <= room
    assert (short == prompt) == (size <= room)


def test_prompts_are_cut_at_a_blank_and_not_without_need() -> None:
    prompt = "The river and the hotel are near the city centre. Why?"
    (short,) = shorten([prompt], TOKENIZER, 9)
    assert short and prompt.split().index(short.split()[0]) and prompt[-len(short) - 1] == " "
    assert 6 <= len(TOKENIZER(short)["input_ids"]) <= 9
    assert shorten([prompt], TOKENIZER, 0) == [prompt]
    (short,) = shorten(["whereto" * 60 + " in Paris"], TOKENIZER, 60)  # its only blank is at the end
    assert 50 <= len(TOKENIZER(short)["input_ids"]) <= 60
