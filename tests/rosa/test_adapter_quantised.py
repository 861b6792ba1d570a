"""Adapters on quantised layers: LoRA, (IA)³ and BitFit train on them; what must read or write W is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import rosa
from tests.rosa.cases import make_optimizer, tokens, train_steps
from tests.rosa.peft_models import distance
from tests.rosa.quantised_models import QUANTISERS, plain_llama, quantised_llama, training_logits

CONFIGS = [rosa.LoraConfig(rank=2, alpha=4), rosa.LoraConfig(rank=2, dropout=0.2), rosa.IA3Config()]


def adapted(kind: str, config: rosa.AdapterConfig = CONFIGS[0]) -> Any:
    return rosa.inject(quantised_llama(kind), config)


def base_outputs(model: Any) -> dict[str, torch.Tensor]:
    """What the frozen modules of the adapted layers compute, in training mode."""
    model.train()
    layers = rosa.adapter_layers(model)
    return {n: layer.base(torch.arange(layer.in_features) / 50).detach() for n, layer in layers.items()}


@pytest.mark.parametrize("config", CONFIGS, ids=["lora", "lora-dropout", "ia3"])
@pytest.mark.parametrize("kind", QUANTISERS)
def test_adapters_train_on_quantised_layers(kind: str, config: rosa.AdapterConfig) -> None:
    base = training_logits(quantised_llama(kind))
    model = adapted(kind, config)
    torch.testing.assert_close(training_logits(model), base)
    frozen = base_outputs(model)
    losses = [*train_steps(model, make_optimizer(model)), *train_steps(model, make_optimizer(model), autocast=True)]
    assert losses[-1] < losses[0] - 0.05
    torch.testing.assert_close(base_outputs(model), frozen, rtol=0, atol=0)
    with rosa.disabled(model):
        torch.testing.assert_close(training_logits(model), base)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_the_gradients_are_those_of_pefts_lora(kind: str) -> None:
    peft = pytest.importorskip("peft")
    own = adapted(kind)
    layers = rosa.adapter_layers(own)
    settings = peft.LoraConfig(r=2, lora_alpha=4, target_modules=list(layers))
    theirs = peft.get_peft_model(quantised_llama(kind), settings)
    pairs = {}
    for name, layer in layers.items():
        twin = theirs.base_model.model.get_submodule(name)
        pairs[name] = twin.lora_A["default"].weight, twin.lora_B["default"].weight
        torch.nn.init.normal_(layer.B, std=0.1, generator=torch.Generator().manual_seed(3))
        pairs[name][0].data.copy_(layer.A.T)
        pairs[name][1].data.copy_(layer.B.T)
    for model in (own, theirs):
        model(tokens(), labels=tokens()).loss.backward()
    for name, layer in layers.items():
        torch.testing.assert_close(layer.A.grad, pairs[name][0].grad.T, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.B.grad, pairs[name][1].grad.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_the_adapter_loads_into_the_quantised_and_the_plain_model(kind: str, tmp_path: Path) -> None:
    model = adapted(kind)
    train_steps(model, make_optimizer(model))
    rosa.save_adapter(model, tmp_path)
    expected = training_logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(training_logits(rosa.load_adapter(quantised_llama(kind), tmp_path)), expected)
        plain = rosa.load_adapter(plain_llama(), tmp_path)
    by_rounding = distance(training_logits(quantised_llama(kind)), plain_llama())
    assert distance(plain, expected) < 2 * by_rounding
    unmerged = training_logits(plain)
    assert distance(rosa.unwrap(plain), unmerged) < 1e-5


@pytest.mark.parametrize("kind", QUANTISERS)
def test_what_writes_into_the_weight_is_refused_and_nothing_changes(kind: str, tmp_path: Path) -> None:
    model = adapted(kind)
    train_steps(model, make_optimizer(model))
    before, frozen = training_logits(model), base_outputs(model)
    for write in (
        rosa.merge,
        rosa.unwrap,
        lambda m: rosa.export(m, tmp_path / "x"),
        lambda m: rosa.merged(m).__enter__(),
    ):
        with pytest.raises(rosa.AdapterError, match=r"q_proj: its weight is quantised.*rosa\.load_adapter"):
            write(model)
    with pytest.raises(rosa.AdapterError, match="its weight is quantised"):
        rosa.adapter_layers(model)["model.layers.0.self_attn.q_proj"].merge()
    assert not (tmp_path / "x").exists()
    torch.testing.assert_close(base_outputs(model), frozen, rtol=0, atol=0)
    torch.testing.assert_close(training_logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=2), rosa.ReloraConfig(rank=2), rosa.DoraConfig(rank=2)])
@pytest.mark.parametrize("kind", QUANTISERS)
def test_methods_that_need_the_weight_are_refused_with_a_way_out(kind: str, config: rosa.AdapterConfig) -> None:
    text = r"q_proj cannot be adapted: its weight \(\w+\) is quantised.*dequantise.*LoRA, .* train on it as it is"
    with pytest.raises(rosa.AdapterError, match=text):
        rosa.inject(quantised_llama(kind), config)


def test_a_packed_weight_counts_as_the_matrix_that_it_stands_for() -> None:
    report = rosa.parameter_report(adapted("nf4"))
    plain = rosa.parameter_report(rosa.inject(plain_llama(), CONFIGS[0]))
    assert report == plain


def test_a_model_through_which_no_gradient_passes_is_refused() -> None:
    model = quantised_llama()
    model.hf_quantizer = SimpleNamespace(is_trainable=False)
    with pytest.raises(rosa.AdapterError, match=r"no gradient passes through the layers.*dequantise it"):
        rosa.inject(model, CONFIGS[0])
    model.hf_quantizer = SimpleNamespace(is_trainable=True)
    assert rosa.adapter_layers(rosa.inject(model, CONFIGS[0]))


def test_a_trained_bias_of_a_quantised_layer_is_saved(tmp_path: Path) -> None:
    layer = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(6, 8)]))
    layer[0][0] = QUANTISERS["stand-in"](layer[0][0])
    rosa.inject(layer, rosa.BitFitConfig())
    with torch.no_grad():
        layer[0][0].base.bias.add_(1)
    rosa.save_adapter(layer, tmp_path)
    other = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(6, 8)]))
    assert torch.equal(rosa.load_adapter(other, tmp_path)[0][0].base.bias, layer[0][0].base.bias)
