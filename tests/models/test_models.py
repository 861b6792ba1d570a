"""Model folders: what is wrong with them is reported before anything trains."""

from __future__ import annotations

import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
)

from tests.conftest import make_config
from utils.errors import UserError, short_reason
from utils.generation.decoding import Decoding
from utils.generation.generate import generate
from utils.models.loading import check_method_fits, load_model, load_model_config, load_tokenizer, max_positions


@pytest.fixture
def model(small_model: Path, tmp_path: Path) -> Path:
    """A copy of the small model to be damaged."""
    return Path(shutil.copytree(small_model, tmp_path / "model"))


def edit(path: Path, **values: Any) -> None:
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def refusal(model: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_tokenizer(str(model))
    return str(refused.value)


def test_a_folder_without_a_tokenizer_is_refused(model: Path) -> None:
    """transformers makes an empty tokenizer there, with which each sample is one token."""
    for file in model.glob("*token*"):
        file.unlink()
    assert "has no tokenizer, or one without tokens. Save the model's own tokenizer in its folder" in refusal(model)
    edit(model / "config.json", model_type="llama")
    assert "Save the model's own tokenizer in its folder" in refusal(model)


def test_a_tokenizer_larger_than_the_embedding_is_refused(model: Path) -> None:
    rows = load_model_config(str(model)).vocab_size
    assert len(load_tokenizer(str(model))) == rows
    edit(model / "config.json", vocab_size=rows - 1)
    assert f"has tokens up to number {rows - 1}, but its embedding has {rows - 1} rows" in refusal(model)


def test_special_tokens_beyond_the_embedding_are_no_harm(model: Path) -> None:
    """Gemma 3's text models lack the row of their tokenizer's image token; no text is tokenised to it."""
    tokenizer = load_tokenizer(str(model))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(model)
    assert len(load_tokenizer(str(model))) == load_model_config(str(model)).vocab_size + 1
    tokenizer.add_tokens(["a word of its own"])
    tokenizer.save_pretrained(model)
    assert "but its embedding has" in refusal(model)


def test_a_tokenizer_without_an_end_is_refused(model: Path) -> None:
    edit(model / "tokenizer_config.json", eos_token=None, tokenizer_class="PreTrainedTokenizerFast")
    assert 'name one as "eos_token" in its tokenizer_config.json' in refusal(model)


def test_a_name_close_to_the_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"Did you mean tiny\? .*Without network") as refused:
        load_tokenizer("tinny")
    assert "https://." not in str(refused.value)


def test_reasons_are_cut_after_a_word() -> None:
    text = short_reason(OSError("see\nhttps://example.org/a/long/address for more"), width=30)
    assert text == "see ..."
    assert short_reason(OSError("short")) == "short"


def test_a_model_that_transformers_does_not_have_as_causal_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("t5").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no causal language model of type t5.*rosa\.inject"):
        check_method_fits(make_config(f"model.name={tmp_path}"))


def test_a_quantised_model_is_refused_with_a_way_out(model: Path) -> None:
    edit(model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(UserError, match=r"holds quantised weights.*model\.dequantize\(\).*rosa\.inject"):
        check_method_fits(make_config(f"model.name={model}"))


@pytest.mark.parametrize(
    ("changed", "missing"),
    [
        ({"n_layer": 3}, r"transformer\.h\.2\.attn"),
        ({"tie_word_embeddings": False}, r"lm_head\.weight"),
    ],
)
def test_a_model_without_some_of_its_weights_is_refused(model: Path, changed: dict[str, Any], missing: str) -> None:
    """transformers would train on random values in their place."""
    edit(model / "config.json", **changed)
    with pytest.raises(UserError, match=missing):
        load_model(str(model))


@pytest.mark.parametrize("prefix", ["transformer.", ""])  # gpt2's own files have none
def test_a_model_with_more_blocks_than_its_configuration_is_refused(model: Path, prefix: str) -> None:
    weights = load_file(model / "model.safetensors")
    renamed = {prefix + name.removeprefix("transformer."): value for name, value in weights.items()}
    save_file(renamed, model / "model.safetensors", {"format": "pt"})
    load_model(str(model))
    edit(model / "config.json", n_layer=1)
    with pytest.raises(UserError, match=rf"more blocks .* {prefix}h\.1\.attn"):
        load_model(str(model))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_is_not_finite_is_refused(model: Path, value: float) -> None:
    weights = load_file(model / "model.safetensors")
    weights["transformer.h.0.attn.c_attn.weight"][0, 0] = value
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"not finite, in transformer\.h\.0\.attn\.c_attn\.weight"):
        load_model(str(model))


def test_a_loaded_model_drops_nothing_before_it_trains(model: Path) -> None:
    """As one of transformers; its faster dropout too."""
    loaded = load_model(str(model))
    assert loaded.config.resid_pdrop > 0 and not any(module.training for module in loaded.modules())


def test_weights_without_a_place_are_named(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_model(str(model))
    assert not caplog.records
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"tower.0.weight": torch.ones(2)}, model / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        load_model(str(model))
    assert "has no place for it: tower.0.weight" in caplog.text


def test_padding_that_the_embedding_lacks_is_not_used(model: Path) -> None:
    """The usual recipe for Llama adds a token, and the embedding is often not enlarged."""
    tokenizer = load_tokenizer(str(model))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    assert load_tokenizer(str(model)).pad_token_id == tokenizer.eos_token_id


def test_a_configuration_that_checks_its_padding_is_no_harm(tmp_path: Path) -> None:
    """ModernBERT's decoder declares an integer, which load_model takes away."""
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("modernbert-decoder", **sizes, **ends)).save_pretrained(
        tmp_path
    )
    assert load_model(str(tmp_path)).config.pad_token_id is None


def test_dropout_is_set_in_inner_configurations_too(tmp_path: Path) -> None:
    AutoConfig.for_model("mpt", d_model=16, n_heads=2, n_layers=1, vocab_size=50).save_pretrained(tmp_path)
    config = load_model_config(str(tmp_path), 0.3)
    assert (config.attn_config.attn_pdrop, config.resid_pdrop) == (0.3, 0.3)


def test_positions_are_those_of_the_text_model() -> None:
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(vocab_size=50, head_dim=8, max_position_embeddings=77, **sizes)
    config = Gemma3Config(text_config=text, vision_config=dict(image_size=28, **sizes), image_token_index=49)
    assert max_positions(Gemma3ForConditionalGeneration(config)) == 77


@pytest.mark.parametrize("own", [{"repetition_penalty": 5.0}, {"num_return_sequences": 2, "do_sample": True}])
def test_texts_do_not_depend_on_the_generation_settings_of_the_model(
    model: Path, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen's chat models come with a penalty, which transformers' generate would add to a run's own settings."""
    monkeypatch.setattr("utils.generation.tree.support.why_not", lambda *args: "a test")

    def texts() -> list[str]:
        loaded, tokenizer = load_model(str(model)), load_tokenizer(str(model))
        return generate(loaded, tokenizer, ["name[A]", "B"], Decoding(num_beams=2, max_new_tokens=8), 2)

    (model / "generation_config.json").unlink()
    expected = texts()
    GenerationConfig(**own).save_pretrained(model)
    assert texts() == expected
