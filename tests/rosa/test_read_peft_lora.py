"""LoRA adapters in the files of peft are read without it: the same logits as those of peft, and clear errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rosa
from rosa.peft_files import WEIGHTS_FILE
from tests.rosa.cases import FAMILIES, digests, logits, make_model, make_optimizer, train_steps
from tests.rosa.test_adapter_modules import classifier, scores

peft = pytest.importorskip("peft")
NAMES = {"gpt2": ["c_attn", "c_proj", "c_fc"], "llama": ["q_proj", "v_proj", "up_proj", "down_proj"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": dict(r=3, lora_alpha=6),
    "rslora": dict(r=4, lora_alpha=3, use_rslora=True),
    "patterns": dict(r=4, rank_pattern={r"h\.0\..*": 2, "q_proj": 3}, alpha_pattern={r"h\.1\..*c_fc": 9, "up_proj": 1}),
    "rslora patterns": dict(r=4, use_rslora=True, rank_pattern={"c_fc": 2, r"^model\.layers\.0\..*": 2}),
    "dora": dict(r=3, lora_alpha=5, use_dora=True),
    "dropout": dict(r=3, lora_dropout=0.5),
    "trained biases": dict(r=2, bias="lora_only"),
    "layers": dict(r=2, layers_to_transform=[1], init_lora_weights="gaussian"),
}


def peft_model(family: str, **settings: Any) -> Any:
    """A model of peft whose adapter parameters are random, in evaluation mode."""
    config = peft.LoraConfig(target_modules=NAMES[family], fan_in_fan_out=family == "gpt2", **settings)
    model = peft.get_peft_model(make_model(family), config)
    randomise(model)
    return model.eval()


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
            elif parameter.requires_grad:
                parameter.mul_(1.1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_logits_are_those_of_peft(name: str, family: str, tmp_path: Path) -> None:
    theirs = peft_model(family, **SETTINGS[name])
    theirs.save_pretrained(tmp_path / "peft")
    expected, base = logits(theirs), logits(make_model(family))
    assert (expected - base).abs().max() > 0.05
    ours = rosa.load_adapter(make_model(family), tmp_path / "peft")
    torch.testing.assert_close(logits(ours), expected, atol=1e-5, rtol=0)
    with rosa.disabled(ours):
        assert torch.equal(logits(ours), base)
    layers = rosa.adapter_layers(ours)
    assert {layer.config.method for layer in layers.values()} == {"dora" if name == "dora" else "lora"}
    assert any(layer.trains_bias for layer in layers.values()) == (name == "trained biases" and family == "gpt2")

    train_steps(ours, make_optimizer(ours))  # trains on, and is saved as any other
    rosa.save_adapter(ours, tmp_path / "ours")
    again = rosa.load_adapter(make_model(family), tmp_path / "ours")
    assert torch.equal(logits(again), logits(ours)) and digests(again) == digests(ours)


def test_ranks_and_scales_are_those_of_each_layer(tmp_path: Path) -> None:
    peft_model("gpt2", **SETTINGS["patterns"]).save_pretrained(tmp_path)
    layers = rosa.adapter_layers(rosa.load_adapter(make_model("gpt2"), tmp_path))
    found = {name.removeprefix("transformer."): (layer.rank, layer.scale) for name, layer in layers.items()}
    assert (
        found["h.0.mlp.c_fc"] == (2, 4.0) and found["h.1.mlp.c_fc"] == (4, 9 / 4) and found["h.1.mlp.c_proj"] == (4, 2)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_this_library_writes_for_peft_comes_back(family: str, tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = rosa.inject(make_model(family), rosa.RosaConfig(rank=1))
    train_steps(model, make_optimizer(model))
    rosa.resample(model, 1)
    train_steps(model, make_optimizer(model))
    to_peft_lora(model, make_model(family), tmp_path)
    ours = rosa.load_adapter(make_model(family), tmp_path)
    torch.testing.assert_close(logits(ours), logits(model), atol=1e-5, rtol=0)
    assert rosa.adapter_layers(ours).keys() == rosa.adapter_layers(model).keys()


def test_a_head_that_peft_saved_is_read(tmp_path: Path) -> None:
    theirs = peft.get_peft_model(classifier(), peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["c_attn"]))
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = rosa.load_adapter(classifier(seed=5), tmp_path, trainable=False)
    torch.testing.assert_close(scores(ours), scores(theirs.eval()), atol=1e-5, rtol=0)
    assert rosa.parameter_report(ours).modules == {"score": 72} and not any(p.requires_grad for p in ours.parameters())


def test_a_copy_of_a_tied_head_needs_a_head_of_its_own(tmp_path: Path) -> None:
    """Peft trains a copy of the head. Read into a tied one, its values became those of the embeddings too."""
    theirs = peft_model("gpt2", r=2, modules_to_save=["lm_head"])
    theirs.save_pretrained(tmp_path)
    model = make_model("gpt2")
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match="lm_head is a copy there, and here it shares its weight"):
        rosa.load_adapter(model, tmp_path)
    assert digests(model) == before
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # as the message says
    model.config.tie_word_embeddings = False
    torch.testing.assert_close(logits(rosa.load_adapter(model, tmp_path)), logits(theirs), atol=1e-5, rtol=0)
    rosa.export(model, tmp_path / "plain")
    plain = type(model).from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain), logits(theirs), atol=1e-5, rtol=0)


def test_peft_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = peft_model("gpt2", r=2)
    theirs.save_pretrained(tmp_path)
    expected = logits(theirs)
    monkeypatch.setitem(sys.modules, "peft", None)  # an import of it fails
    torch.testing.assert_close(logits(rosa.load_adapter(make_model("gpt2"), tmp_path)), expected, atol=1e-5, rtol=0)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensors(folder: Path, change: Any) -> None:
    found = load_file(folder / WEIGHTS_FILE)
    save_file(change(found), folder / WEIGHTS_FILE)


def renamed(found: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {key.replace(old, new): value for key, value in found.items()}


FIRST = "base_model.model.transformer.h.0.attn.c_attn"
REFUSED: dict[str, tuple[Any, str]] = {
    "another method": (lambda f: edit(f, peft_type="LOHA"), "peft_type is LOHA, and only LORA is read"),
    "an object as type": (lambda f: edit(f, peft_type={}), "peft_type is"),
    "all biases": (lambda f: edit(f, bias="all"), "bias=all trains biases"),
    "a start that changes the base": (lambda f: edit(f, init_lora_weights="pissa"), "init_lora_weights=pissa changes"),
    "a later setting": (lambda f: edit(f, use_wonder=True), "use_wonder=True is not known"),
    "experts": (lambda f: edit(f, target_parameters=["mlp"]), r"target_parameters=\['mlp'\] is not known"),
    "copies of layers": (lambda f: edit(f, layer_replication=[[0, 2]]), "layer_replication"),
    "invocation tokens": (lambda f: edit(f, alora_invocation_tokens=[1]), "alora_invocation_tokens"),
    "a pattern without end": (lambda f: edit(f, alpha_pattern={"(.+)+!": 2}), "alpha_pattern has the expression"),
    "a pattern that is none": (lambda f: edit(f, alpha_pattern={"(": 2}), "which is no expression"),
    "patterns as a list": (lambda f: edit(f, alpha_pattern=["a"]), "alpha_pattern is not an object"),
    "no alpha": (lambda f: edit(f, lora_alpha="x"), "lora_alpha of transformer.h.0.attn.c_attn is x"),
    "alpha zero": (lambda f: edit(f, lora_alpha=0), "lora_alpha of .* is 0"),
    "rank a text": (lambda f: edit(f, r="x"), "rank='x'"),
    "dropout a text": (lambda f: edit(f, lora_dropout="x"), "dropout='x'"),
    "pickled": (lambda f: (f / WEIGHTS_FILE).rename(f / "adapter_model.bin"), "adapter_model.bin is pickled"),
    "missing": (lambda f: (f / WEIGHTS_FILE).unlink(), f"has no {WEIGHTS_FILE}"),
    "cut off": (lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-9]), "damaged"),
    "an embedding": (
        lambda f: tensors(f, lambda t: renamed(t, "lora_A.weight", "lora_embedding_A")), "the tensor .* is of no layer"
    ),
    "a pair without B": (lambda f: tensors(f, lambda t: {k: v for k, v in t.items() if "lora_A" in k}), "no pair"),
    "another rank": (
        lambda f: tensors(f, lambda t: {**t, f"{FIRST}.lora_B.weight": torch.zeros(72, 3)}), "does not fit the model"
    ),
    "another model": (lambda f: tensors(f, lambda t: renamed(t, "c_attn", "q_proj")), "q_proj is .* absent in"),
    "another width": (
        lambda f: tensors(f, lambda t: {**t, f"{FIRST}.lora_A.weight": torch.zeros(2, 25)}), "another model"
    ),
    "not finite": (lambda f: tensors(f, lambda t: {k: v / 0 for k, v in t.items()}), "not finite"),
    "a bias where there is none": (
        lambda f: tensors(f, lambda t: {**t, f"{FIRST.replace('c_attn', 'none')}.lora_B.bias": torch.zeros(72)}),
        "the tensor .* is of no layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_one_error(kind: str, tmp_path: Path) -> None:
    peft_model("gpt2", r=2).save_pretrained(tmp_path)
    damage, text = REFUSED[kind]
    damage(tmp_path)
    model = make_model("gpt2")
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=text):
        rosa.load_adapter(model, tmp_path)
    assert digests(model) == before and not rosa.adapter_layers(model)


def test_a_bias_of_b_on_a_layer_without_bias_is_an_error(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no bias"):
        peft_model("llama", r=2, lora_bias=True).save_pretrained(tmp_path)
    with pytest.raises(rosa.AdapterError, match="another model or of other settings"):
        rosa.load_adapter(make_model("llama"), tmp_path)


def test_it_loads_into_the_same_adapters_too(tmp_path: Path) -> None:
    theirs = peft_model("gpt2", r=2, lora_alpha=4)
    theirs.save_pretrained(tmp_path)
    config = rosa.LoraConfig(rank=2, alpha=4.0, target_modules=NAMES["gpt2"])
    ours = rosa.load_adapter(rosa.inject(make_model("gpt2"), config), tmp_path)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)
    with pytest.raises(rosa.AdapterError, match="other settings"):
        rosa.load_adapter(rosa.inject(make_model("gpt2"), rosa.LoraConfig(rank=2)), tmp_path)
