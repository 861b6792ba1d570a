"""The learned change as a LoRA adapter of PEFT, loaded by PEFT itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import rosa
from tests.rosa.cases import (
    FAMILIES,
    adapt,
    logits,
    make_model,
    make_optimizer,
    tokens,
    train_steps,
    trained,
    trained_model,
)

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("config", "resamples", "bound"),
    [
        (rosa.RosaConfig(rank=1), 0, 2),  # K = 1 factorisation: 2 R K
        (rosa.RosaConfig(rank=1, bias="none"), 2, 6),
        (rosa.RosaConfig(rank=2, factor_split="left"), 1, 8),
        (rosa.LoraConfig(rank=3, alpha=12), 0, 3),
        (rosa.LoraConfig(rank=2, bias="adapted"), 0, 2),
    ],
)
def test_peft_reads_the_change_as_lora(
    config: rosa.AdapterConfig, resamples: int, bound: int, family: str, merged: bool, tmp_path: Path
) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = trained_model(family, config, resamples)
    expected = logits(model)
    base = make_model(family)
    assert (logits(base) - expected).abs().max() > 0.1
    if merged:
        rosa.merge(model)
    assert to_peft_lora(model, base if merged else base.state_dict(), tmp_path).rank == bound
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=0)
    settings = loaded.peft_config["default"]
    assert settings.task_type == "CAUSAL_LM" and settings.r == bound
    assert settings.lora_bias == (config.trains_bias and family == "gpt2")
    plain = loaded.merge_and_unload()
    torch.testing.assert_close(logits(plain), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("config", [rosa.LoraConfig(rank=3), rosa.LoraConfig(rank=2, alpha=8.0)])
def test_a_16_bit_base_that_nothing_was_written_into_loses_nothing(config: rosa.LoraConfig, tmp_path: Path) -> None:
    """The change of such a method is in float32. The rounding of W would hide most of a small one."""
    from rosa.integrations.peft import to_peft_lora

    model = adapt("gpt2", config, dtype=torch.bfloat16)
    train_steps(model, make_optimizer(model, lr=1e-3))
    written = to_peft_lora(model, make_model("gpt2", dtype=torch.bfloat16), tmp_path)
    assert set(written.ranks.values()) == {config.rank} and written.error < 1e-6
    changes = {name: layer.delta() for name, layer in rosa.adapter_layers(model).items()}
    for name, change in written.changes.items():
        torch.testing.assert_close(change.a @ change.b, changes[name].detach(), atol=1e-7, rtol=1e-4)


def test_what_rounding_hides_of_a_16_bit_change_is_said(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    with pytest.warns(UserWarning, match="16-bit weights"):
        model = adapt("gpt2", rosa.RosaConfig(rank=1, bias="none"), dtype=torch.bfloat16)
    rosa.resample(model, 1)
    train_steps(model, make_optimizer(model, lr=1e-3))
    with pytest.warns(UserWarning, match=r"the pairs lack \d+% of the change: .*rosa\.export"):
        to_peft_lora(model, make_model("gpt2", dtype=torch.bfloat16), tmp_path)


def test_ranks_that_differ_between_layers(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = trained_model("llama", rosa.LoraConfig(rank=0.25), 0)
    assert {layer.rank for layer in rosa.adapter_layers(model).values()} == {3, 6}
    assert to_peft_lora(model, make_model("llama"), tmp_path).rank == 6
    loaded = peft.PeftModel.from_pretrained(make_model("llama"), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    shapes = {name: p.shape[0] for name, p in loaded.named_parameters() if "lora_A" in name and "layers.0" in name}
    assert sorted(shapes.values()) == [3, 3, 6, 6, 6, 6, 6]  # grouped keys and values are smaller


def test_an_untrained_adapter_becomes_one_of_rank_one(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = adapt("gpt2", rosa.RosaConfig(rank=8))
    assert to_peft_lora(model, make_model("gpt2"), tmp_path).rank == 1  # rounding is no change
    for number in range(1, 21):
        rosa.resample(model, number)
    assert to_peft_lora(model, make_model("gpt2"), tmp_path).rank == 1
    assert trained(model)


def test_a_change_that_fills_the_weights_is_refused(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = trained_model("gpt2", rosa.RosaConfig(rank=4), 2)  # up to 24 = q
    with pytest.raises(rosa.AdapterError, match=r"rosa\.export"):
        to_peft_lora(model, make_model("gpt2"), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = trained_model("gpt2", rosa.RosaConfig(rank=1), 0)
    folder = tmp_path / "adapter"
    with pytest.raises(rosa.AdapterError, match=r"base has no transformer\.h\.0"):
        to_peft_lora(model, make_model("llama"), folder)
    with pytest.raises(rosa.AdapterError, match=r"c_attn\.weight is \(32, 96\), the adapted one \(24, 72\)"):
        to_peft_lora(model, make_model("gpt2", n_embd=32), folder)
    with pytest.raises(rosa.AdapterError, match="has adapters itself"):
        to_peft_lora(model, model, folder)
    with pytest.raises(rosa.AdapterError, match="no adapters to convert"):
        to_peft_lora(make_model("gpt2"), make_model("gpt2"), folder)
    with pytest.raises(rosa.AdapterError, match=r"rosa\.export"):  # other weights: the difference has full rank
        to_peft_lora(model, make_model("gpt2", seed=1), folder)
    assert not folder.exists()
    model.resize_token_embeddings(model.config.vocab_size + 1)
    to_peft_lora(model, make_model("gpt2"), folder)
    model.transformer.wte.requires_grad_(True)
    with pytest.raises(
        rosa.AdapterError, match=r"wte\.weight trains, and the base has no such parameter of this shape"
    ):
        to_peft_lora(model, make_model("gpt2"), tmp_path / "trained")
    assert not (tmp_path / "trained").exists()


def test_the_package_peft_is_not_needed_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rosa.integrations.peft.lora_files import to_peft_lora

    monkeypatch.setitem(sys.modules, "peft", None)
    model = trained_model("llama", rosa.LoraConfig(rank=2), 0)
    to_peft_lora(model, make_model("llama"), tmp_path)
    monkeypatch.undo()
    loaded = peft.PeftModel.from_pretrained(make_model("llama"), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)


def test_the_adapter_file_has_pefts_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from rosa.integrations.peft import to_peft_lora

    model = trained_model("llama", rosa.LoraConfig(rank=2), 0)
    to_peft_lora(model, make_model("llama"), tmp_path)
    peft.get_peft_model(make_model("llama"), peft.LoraConfig(r=2, target_modules="all-linear")).save_pretrained(
        tmp_path / "peft"
    )
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "peft"))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"


def qwen2() -> Any:
    """Biases on queries, keys and values only."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    settings = dict(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, initializer_range=0.2)
    return Qwen2ForCausalLM(Qwen2Config(**settings, num_attention_heads=4, num_key_value_heads=2))


def whisper() -> Any:
    """No bias on keys; its inputs are features."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    layers = dict(encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2)
    sizes = dict(num_mel_bins=8, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=12)
    ends = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    return WhisperForConditionalGeneration(WhisperConfig(vocab_size=61, init_std=0.2, **layers, **sizes, **ends))


@pytest.mark.parametrize("bias", ["adapted", "none"])
@pytest.mark.parametrize("build", [qwen2, whisper])
def test_peft_loads_and_merges_where_only_some_layers_have_a_bias(build: Any, bias: str, tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    def make() -> Any:
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.1)
        return model

    def outputs(model: Any) -> torch.Tensor:
        features = torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(3))
        inputs = {"input_features": features, "decoder_input_ids": tokens()}
        out: torch.Tensor = model(**(inputs if build is whisper else {"input_ids": tokens()})).logits
        return out

    model = rosa.inject(make(), rosa.RosaConfig(rank=1, bias=bias))
    optimizer = make_optimizer(model)
    for _ in range(2):
        outputs(model).square().mean().backward()
        optimizer.step()
    expected = outputs(model).detach()
    assert (outputs(make()) - expected).abs().max() > 0.1
    to_peft_lora(model, make(), tmp_path)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path)
    torch.testing.assert_close(outputs(loaded), expected, atol=1e-5, rtol=0)
    loaded.save_pretrained(tmp_path / "again")  # PEFT keeps all of it
    again = peft.PeftModel.from_pretrained(make(), tmp_path / "again")
    torch.testing.assert_close(outputs(again), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs(again.merge_and_unload()), expected, atol=2e-5, rtol=0)
