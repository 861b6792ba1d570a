"""Model folders: what is wrong with them is reported before anything trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.conftest import make_config
from utils.errors import UserError, short_reason
from utils.models.loading import check_method_fits, load_model_config, load_tokenizer


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
