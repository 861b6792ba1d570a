"""A ROSA adapter of PEFT as a LoRA adapter that PEFT loads without this library."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rosa
from tests.rosa.cases import FAMILIES, logits, make_model, make_optimizer, tokens

peft = pytest.importorskip("peft")

from tests.rosa.peft_models import adapt_by_peft, distance, make_classifier, train, trained  # noqa: E402


@pytest.mark.parametrize(("family", "bias"), [("gpt2", "none"), ("llama", "adapted"), ("gpt2", "adapted")])
def test_a_folder_for_peft_alone_and_to_train_on(family: str, bias: str, tmp_path: Path) -> None:
    from rosa.integrations.peft import save_as_lora

    model = trained(family, resamples=1, r=1, bias=bias)
    expected = logits(model)
    assert save_as_lora(tmp_path, model) == 4  # 2 R K
    assert torch.equal(logits(model), expected)
    loaded = peft.PeftModel.from_pretrained(make_model(family), tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings.keys() <= {f.name for f in dataclasses.fields(peft.LoraConfig)}
    assert all(".lora_" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    assert distance(loaded, expected) < 1e-5
    again = peft.PeftModel.from_pretrained(make_model(family), tmp_path, subfolder="rosa", is_trainable=True)
    for one in (model, again):
        train(one, 1)
    assert distance(model, again) < 1e-4


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
def test_the_auto_class_of_peft_finds_the_base(task: str | None, tmp_path: Path) -> None:
    from rosa.integrations.peft import save_as_lora

    make_model("gpt2").save_pretrained(tmp_path / "base")
    base = type(make_model("gpt2")).from_pretrained(tmp_path / "base")
    model = adapt_by_peft(base=base, r=1, task_type=task)
    train(model, 1)
    save_as_lora(tmp_path / "lora", model)
    assert distance(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora"), model) < 1e-5


def test_a_change_as_large_as_the_weights_is_refused_or_cut(tmp_path: Path) -> None:
    from rosa.integrations.peft import save_as_lora

    model = trained(r=6)
    with pytest.raises(rosa.AdapterError, match=r"rank up to 24.*merge_and_unload\(\)\.save_pretrained.*rank=0\.99"):
        save_as_lora(tmp_path / "no", model)
    assert not (tmp_path / "no").exists()
    layer = model.get_base_model().transformer.h[0].attn.c_attn.get_delta_weight("default").detach().double()
    for cut in (3, 0.9):
        assert save_as_lora(tmp_path / str(cut), model, rank=cut) < 12
        tensors = load_file(tmp_path / str(cut) / "adapter_model.safetensors")
        a, b = (tensors[f"base_model.model.transformer.h.0.attn.c_attn.lora_{x}.weight"].double().T for x in "AB")
        s = torch.linalg.svdvals(layer)
        rank = 3 if cut == 3 else int(((s**2).cumsum(0) < 0.9 * (s**2).sum()).sum()) + 1
        assert a.shape[1] == rank
        assert float((layer - a @ b).norm()) == pytest.approx(float(s[rank:].norm()), rel=1e-4)
    for wrong in (0, 1.5, True):
        with pytest.raises(rosa.AdapterError, match="rank="):
            save_as_lora(tmp_path, model, rank=wrong)
    with pytest.raises(rosa.AdapterError, match=r"no ROSA adapter 'other' \(its adapters of PEFT: default\)"):
        save_as_lora(tmp_path, model, adapter_name="other")


@pytest.mark.skipif(not hasattr(peft, "save_as_lora"), reason="this version of peft has no save_as_lora")
@pytest.mark.parametrize("family", FAMILIES)
def test_pefts_own_conversion(family: str, tmp_path: Path) -> None:
    model = trained(family, resamples=1, r=1)
    peft.save_as_lora(tmp_path, model, rank=4)
    assert distance(peft.PeftModel.from_pretrained(make_model(family), tmp_path), model) < 1e-5


def test_a_classifier_with_its_head(tmp_path: Path) -> None:
    from rosa.integrations.peft import save_as_lora

    model = adapt_by_peft(base=make_classifier(0), task_type="SEQ_CLS", modules_to_save=["wpe"], r=1)
    optimizer = make_optimizer(model)
    model(input_ids=tokens(), labels=torch.tensor([0, 1, 1, 0])).loss.backward()
    optimizer.step()
    save_as_lora(tmp_path, model)
    loaded = peft.PeftModel.from_pretrained(make_classifier(1), tmp_path)
    assert loaded.peft_config["default"].task_type == "SEQ_CLS"
    assert distance(loaded, model) < 1e-5


def test_an_adapted_output_head_is_saved_without_its_base_weight(tmp_path: Path) -> None:
    from rosa.integrations.peft import RosaConfig, save_as_lora

    def make() -> Any:
        return make_model("gpt2", tie_word_embeddings=False)

    model = adapt_by_peft(base=make(), target_modules=["lm_head", "c_attn"])
    train(model, 1)
    model.add_adapter("second", RosaConfig(r=1, target_modules=["lm_head", "c_fc"]))
    model.set_adapter("second")
    train(model, 1)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    save_as_lora(tmp_path / "lora", model, adapter_name="second")
    for folder in (tmp_path / "second", tmp_path / "lora"):
        assert not [key for key in load_file(folder / "adapter_model.safetensors") if "base_layer" in key]
        assert distance(peft.PeftModel.from_pretrained(make(), folder), expected) < 1e-5


def test_an_adapted_head_of_a_resized_vocabulary(tmp_path: Path) -> None:
    """PEFT saves the head's own weight then, which is W_f while ROSA trains, beside the change from W_0."""
    from rosa.integrations.peft import save_as_lora

    make_model("llama").save_pretrained(tmp_path / "base")  # with whose configuration PEFT compares the vocabulary

    def resized() -> Any:
        base = type(make_model("llama")).from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(base.config.vocab_size + 3, mean_resizing=False)
        with torch.no_grad():
            for part in (base.get_input_embeddings(), base.get_output_embeddings()):
                part.weight[-3:] = 0.1
        return base

    model = adapt_by_peft(base=resized(), r=1, target_modules=["q_proj", "lm_head"])
    for epoch in (1, 2):
        train(model, 1)
        model.base_model.after_epoch(epoch)
    save_as_lora(tmp_path / "lora", model)
    assert any("lm_head.base_layer" in key for key in load_file(tmp_path / "lora" / "adapter_model.safetensors"))
    assert distance(peft.PeftModel.from_pretrained(resized(), tmp_path / "lora"), model) < 1e-5
