"""Pairs as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from utils.config.settings import load_config
from utils.data import Example, pair
from utils.errors import UserError
from utils.generation.prompts import shorten
from utils.io.files import write_json
from utils.models.loading import load_tokenizer
from utils.runs import trained
from utils.tokens.encoding import encode, first_ids, prompt_ids, spelled_tokens
from utils.tokens.packing import pack


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


def begins_with_bos(source: str = "tiny") -> Any:
    """The bundled tokenizer, made to begin texts with a token, as those of Llama and Gemma do."""
    tokenizer = load_tokenizer(source)
    bos = tokenizer.eos_token
    template = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


def test_texts_begin_as_the_tokenizer_begins_them() -> None:
    """In training, packed or not, as in generation; a cut prompt too."""
    plain, tokenizer = load_tokenizer("tiny"), begins_with_bos()
    assert first_ids(plain) == [] and first_ids(tokenizer) == [tokenizer.eos_token_id]
    examples, eos = [pair("name[A]", "A is a pub."), pair("name[B]", "B.")], tokenizer.eos_token_id
    for before, after in zip(encode(examples, plain, 90).samples, encode(examples, tokenizer, 90).samples, strict=True):
        assert after.ids == [eos, *before.ids] and after.prompt_length == before.prompt_length + 1
        assert after.target_characters == before.target_characters
    stream = [
        token for e in examples for token in (eos, *plain(e.prompt)["input_ids"], *plain(e.target)["input_ids"], eos)
    ]
    (block,) = pack([[e] for e in examples], tokenizer, 500).samples
    assert block.ids.tolist() == stream
    assert block.characters == sum(len(e.prompt) + len(e.target) for e in examples)  # bos is the one without a loss
    prompt = examples[0].prompt
    assert prompt_ids([prompt], tokenizer) == [tokenizer(prompt)["input_ids"]]
    (cut,) = shorten(["one two three four five six seven"], tokenizer, 6)
    assert len(prompt_ids([cut], tokenizer)[0]) <= 6


def test_the_first_token_has_no_loss_and_no_characters() -> None:
    tokenizer = load_tokenizer("tiny")
    example = Example("Input", "Input", " x.", "x.", "")
    (sample,) = encode([example], tokenizer, 90).samples
    lost = len(tokenizer.decode(sample.ids[:1]))
    assert sample.characters == len("Input x.") - lost and 0 < lost < len("Input x.")
    (block,) = pack([[example]], tokenizer, 90).samples
    assert block.characters == sample.characters
    (after_bos,) = encode([example], begins_with_bos(), 90).samples
    assert after_bos.characters == len("Input x.")


def test_texts_that_spell_special_tokens_are_found() -> None:
    """Also tokens that have no name of their own, as those of chats."""
    tokenizer = load_tokenizer("tiny")
    tokenizer.add_tokens([AddedToken("<|eot_id|>", special=True)], special_tokens=True)
    texts = ["a", f"b{tokenizer.eos_token}", "<|endoftext", "c<|eot_id|>"]
    assert spelled_tokens(texts, tokenizer) == [tokenizer.eos_token, "<|eot_id|>"]


def test_a_run_of_an_earlier_version_keeps_its_way_to_begin_texts(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record does not say how, and it added nothing."""
    monkeypatch.setattr(trained, "load_tokenizer", lambda *_: begins_with_bos())
    run = train("train.epochs=1", "fnmodel.name=lora")
    config, bos = load_config(run.config_file), begins_with_bos().eos_token_id
    assert run.record()["first_ids"] == [bos] == first_ids(trained.tokenizer_of(run, config))
    record = run.record()
    del record["first_ids"]
    write_json(run.record_file, record)
    assert first_ids(trained.tokenizer_of(run, config)) == []
