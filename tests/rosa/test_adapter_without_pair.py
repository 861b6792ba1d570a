"""Methods without a pair A, B: (IA)³ equals PEFT's, BitFit equals training of the biases only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import rosa
from tests.conftest import ROOT
from tests.rosa.cases import adapt, digests, logits, make_model, make_optimizer, tokens, train_steps

PEFT_TARGETS = {  # PEFT's own: the layers that it adapts, and those of them whose inputs are scaled
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
}


def set_scales(model: Any) -> None:
    """Set the scales to values other than one, as after training."""
    generator = torch.Generator().manual_seed(3)
    for layer in rosa.adapter_layers(model).values():
        layer.scale.data.normal_(1, 0.3, generator=generator)


@pytest.mark.parametrize("family", PEFT_TARGETS)
def test_ia3_is_pefts_ia3(family: str) -> None:
    peft = pytest.importorskip("peft")
    targets, inner = PEFT_TARGETS[family]
    ours = adapt(family, rosa.IA3Config(target_modules=targets), initializer_range=0.02)
    settings = peft.IA3Config(target_modules=targets, feedforward_modules=inner, fan_in_fan_out=family == "gpt2")
    theirs = peft.get_peft_model(make_model(family, initializer_range=0.02), settings)
    set_scales(ours)
    prefix = "base_model.model."
    others = {name.removeprefix(prefix): m for name, m in theirs.named_modules() if hasattr(m, "ia3_l")}
    layers = rosa.adapter_layers(ours)
    assert layers.keys() == others.keys()
    for name, layer in layers.items():
        scale = others[name].ia3_l["default"]
        assert scale.numel() == layer.scale.numel()
        scale.data.copy_(layer.scale.detach().view_as(scale))
    for model in (ours, theirs):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-6, rtol=0)
    for name, layer in layers.items():
        expected = others[name].ia3_l["default"].grad.flatten()
        torch.testing.assert_close(layer.scale.grad, expected, atol=1e-6, rtol=0)
    assert (logits(ours) - logits(make_model(family, initializer_range=0.02))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("inner", "count"),
    [([], 3 * (3 + 1 + 4 + 1) * 96), (["mlp.c_proj"], 3 * (3 + 1 + 4 + 4) * 96)],  # 2,592 and 3,456
)
def test_the_report_counts_the_scales_of_the_bundled_model(inner: list[str], count: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(ROOT / "assets" / "tiny-gpt2")
    plain = sum(p.numel() for p in model.parameters())
    report = rosa.parameter_report(rosa.inject(model, rosa.IA3Config(feedforward_modules=inner)))
    assert (report.trainable, report.total) == (count, plain)
    assert all(layer.rank is None for layer in report.layers) and " - " in str(report).splitlines()[1]


def test_a_saved_merged_model_keeps_the_bias_from_before_the_merge(tmp_path: Path) -> None:
    """The merge writes into a bias that trains and is scaled."""
    model = adapt("gpt2", rosa.IA3Config(bias="adapted"))
    train_steps(model, make_optimizer(model))
    before, expected = digests(model), logits(model)
    rosa.save_adapter(rosa.merge(model), tmp_path)
    assert digests(rosa.unmerge(model)) == before
    assert torch.equal(logits(rosa.load_adapter(make_model("gpt2"), tmp_path)), expected)


def test_the_base_model_is_known_while_merged(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = adapt("gpt2", rosa.IA3Config())
    set_scales(model)
    rosa.save_adapter(rosa.merge(model), tmp_path)
    rosa.load_adapter(make_model("gpt2"), tmp_path)
    assert not [warning for warning in recwarn if "another base model" in str(warning.message)]


@pytest.mark.parametrize("family", PEFT_TARGETS)
def test_weight_and_bias_read_as_merged(family: str) -> None:
    """For models that read a layer's weight and bias; gradients reach the scales through them."""
    model = adapt(family, rosa.IA3Config(), torch.float64)
    set_scales(model)
    for layer in rosa.adapter_layers(model).values():
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        weight = layer.weight if layer.transposed else layer.weight.T
        torch.testing.assert_close(torch.nn.functional.linear(x, weight, layer.bias), layer(x))
        assert weight.requires_grad
        read = layer.weight.detach().clone()
        layer.merge()
        torch.testing.assert_close(layer.weight.detach(), read)


def test_ia3_beside_a_sixteen_bit_weight_trains_in_float32() -> None:
    model = adapt("llama", rosa.IA3Config(), torch.bfloat16)
    layers = rosa.adapter_layers(model).values()
    before = logits(make_model("llama", dtype=torch.bfloat16))
    assert all(layer.scale.dtype == torch.float32 for layer in layers)
    assert torch.equal(logits(model), before) and logits(model).dtype == torch.bfloat16
    train_steps(model, make_optimizer(model, lr=1e-4), steps=1)
    assert all(0 < (layer.scale - 1).abs().max() < 2e-4 for layer in layers)  # a step that bfloat16 cannot hold


def test_bitfit_is_training_of_the_biases() -> None:
    model, plain = adapt("gpt2", rosa.BitFitConfig()), make_model("gpt2").requires_grad_(False)
    biases = [f"{name}.bias" for name in rosa.adapter_layers(model)]
    for name in biases:
        plain.get_parameter(name).requires_grad_(True)
    assert train_steps(model, make_optimizer(model)) == train_steps(plain, make_optimizer(plain))
    assert torch.equal(logits(model), logits(plain))


def test_bitfit_without_a_bias_has_nothing_to_train() -> None:
    model = make_model("llama")
    with pytest.raises(rosa.AdapterError, match="BitFit with bias=auto has nothing to train: none of the 14 layers"):
        rosa.inject(model, rosa.BitFitConfig())
    assert not rosa.adapter_layers(model) and all(p.requires_grad for p in model.parameters())
    some = rosa.inject(make_model("llama", attention_bias=True), rosa.BitFitConfig())
    assert rosa.parameter_report(some).trainable == 2 * (24 + 12 + 12 + 24)
    with pytest.raises(rosa.AdapterError, match="bias=none leaves BitFit nothing to train"):
        rosa.inject(make_model("gpt2"), rosa.BitFitConfig(bias="none"))


def test_hooks_see_the_whole_layer() -> None:
    model = make_model("gpt2")
    seen: list[torch.Tensor] = []
    module = model.transformer.h[0].mlp.c_fc
    module.register_forward_hook(lambda module, args, out: seen.append(out))
    rosa.inject(model, rosa.IA3Config())
    layer = rosa.adapter_layers(model)["transformer.h.0.mlp.c_fc"]
    layer.scale.data.fill_(2)
    x = torch.randn(1, 24)
    assert torch.equal(layer(x), seen[0]) and torch.allclose(seen[0], 2 * layer.base.forward(x))
    assert len(seen) == 1


def test_only_pairs_become_a_lora_adapter(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from rosa.integrations.peft import to_peft_lora

    with pytest.raises(rosa.AdapterError, match="have no pair A, B: save the plain model"):
        to_peft_lora(adapt("gpt2", rosa.IA3Config()), make_model("gpt2"), tmp_path)


def test_endings_that_match_nothing_are_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    rosa.inject(make_model("gpt2"), rosa.IA3Config(target_modules=["c_attn"]))
    rosa.inject(make_model("llama"), rosa.IA3Config(feedforward_modules=[]))
    assert not [one for one in recwarn if "feedforward_modules" in str(one.message)]
    with pytest.warns(UserWarning, match=r"no adapted layer ends in one of feedforward_modules=\['c_porj'\]"):
        rosa.inject(make_model("gpt2"), rosa.IA3Config(feedforward_modules=["c_porj"]))
