"""Models in GGUF files: read as transformers reads them, trained and saved as plain models; refusals."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.models import gguf as module
from utils.models.loading import hidden_size, load_model, load_model_config, load_tokenizer

NAME = "small.gguf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of one block and eight tokens in one GGUF file, two of its matrices in blocks of 8 bits."""
    gguf = pytest.importorskip("gguf", reason="the package gguf, which is optional, is not installed")
    place = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(place / NAME, "llama")
    width_, heads, inner = 32, 2, 64
    writer.add_context_length(64)
    writer.add_embedding_length(width_)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(width_ // heads)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "Ġ"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), width_), "output": (len(tokens), width_), "output_norm": (width_,),
        "blk.0.attn_norm": (width_,), "blk.0.ffn_norm": (width_,), "blk.0.attn_q": (width_, width_),
        "blk.0.attn_k": (width_, width_), "blk.0.attn_v": (width_, width_), "blk.0.attn_output": (width_, width_),
        "blk.0.ffn_gate": (inner, width_), "blk.0.ffn_up": (inner, width_), "blk.0.ffn_down": (width_, inner),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = rng.normal(size=shape).astype(np.float32)
        if name.endswith(("ffn_up", "attn_v")):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def test_a_gguf_file_is_a_plain_model(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = load_model(str(folder), gguf=NAME).eval()
    assert hidden_size(str(folder), NAME) == 32 and load_model_config(str(folder), gguf=NAME).model_type == "llama"
    assert all(type(p) is torch.nn.Parameter and p.dtype == torch.float32 for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    tokens = torch.tensor([[3, 4, 5, 6]])
    reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file=NAME, dtype=torch.float32).eval()
    expected = reference(input_ids=tokens).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(saved(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)


def test_its_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder), NAME)
    assert tokenizer.eos_token == "</s>" and tokenizer("ab", add_special_tokens=False)["input_ids"] == [6]


def test_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.gguf_file=other\.gguf is not a file in .*; GGUF files there: small\."):
        load_model(str(folder), gguf="other.gguf")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"model\.gguf_file=small\.gguf needs the package gguf: pip install gguf"):
        load_tokenizer(str(tmp_path), NAME)


def test_loading_passes_the_file_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for transformers' loaders: configuration, tokenizer and model read one file."""
    import transformers

    (tmp_path / NAME).touch()
    monkeypatch.setattr(module, "check_gguf", lambda folder, name: None)
    monkeypatch.setattr("utils.models.loading.check_gguf", lambda folder, name: None)
    seen = []

    class Stop(OSError):
        pass

    def loader(source: str, **options: Any) -> Any:
        seen.append((source, options["gguf_file"]))
        raise Stop("seen")

    for name in ("AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(getattr(transformers, name), "from_pretrained", loader)
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match="seen"):
            load(str(tmp_path), gguf=NAME)
    assert seen == [(str(tmp_path), NAME)] * 2
