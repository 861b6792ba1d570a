"""Adapters on quantised layers: LoRA and (IA)³ train on them; what must read or write W is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import rosa
from tests.rosa.cases import make_optimizer, tokens, train_steps
from tests.rosa.peft_models import distance
from tests.rosa.quantised_models import QUANTISERS, plain_llama, quantised_llama, training_logits

CONFIGS = [rosa.LoraConfig(rank=2, alpha=4), rosa.LoraConfig(rank=2, dropout=0.2), rosa.IA3Config()]


def adapted(kind: str, config: rosa.AdapterConfig = CONFIGS[0]) -> Any:
    return rosa.inject(quantised_llama(kind), config)


def block(layer: nn.Module) -> Any:
    """A model with one layer in its blocks."""
    model = nn.Module()
    model.layers = nn.ModuleList([layer])
    return model


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


@pytest.mark.parametrize(
    "config",
    [rosa.RosaConfig(rank=2), rosa.ReloraConfig(rank=2), rosa.DoraConfig(rank=2), rosa.BitFitConfig()],
    ids=lambda config: config.method,
)
@pytest.mark.parametrize("kind", QUANTISERS)
def test_methods_that_need_the_weight_are_refused_with_a_way_out(kind: str, config: rosa.AdapterConfig) -> None:
    text = r"q_proj cannot be adapted: its weight \(\w+\) is quantised, which only LoRA or \(IA\)³ takes.*dequantise"
    with pytest.raises(rosa.AdapterError, match=text):
        rosa.inject(quantised_llama(kind), config)


def test_a_packed_weight_counts_as_the_matrix_that_it_stands_for() -> None:
    report = rosa.parameter_report(adapted("nf4"))
    plain = rosa.parameter_report(rosa.inject(plain_llama(), CONFIGS[0]))
    assert report == plain


def test_a_model_through_which_no_gradient_passes_is_refused() -> None:
    model = quantised_llama()
    model.hf_quantizer = SimpleNamespace(is_trainable=False)
    with pytest.raises(rosa.AdapterError, match="no gradient passes through the layers"):
        rosa.inject(model, CONFIGS[0])
    model.hf_quantizer = SimpleNamespace(is_trainable=True)
    assert rosa.adapter_layers(rosa.inject(model, CONFIGS[0]))


@pytest.mark.parametrize("kind", QUANTISERS)
def test_no_bias_of_a_quantised_layer_trains(kind: str) -> None:
    """That of bitsandbytes' four bits takes the dtype of the products."""
    model = block(QUANTISERS[kind](nn.Linear(32, 64)))
    with pytest.raises(rosa.AdapterError, match=r"layers\.0: its class may round the bias.*bias='none'"):
        rosa.inject(model, rosa.LoraConfig(rank=2, bias="adapted"))
    with pytest.raises(rosa.AdapterError, match="is quantised"):
        rosa.inject(model, rosa.BitFitConfig())
    assert rosa.adapter_layers(rosa.inject(model, rosa.LoraConfig(rank=2)))


@pytest.mark.parametrize("config", [rosa.LoraConfig(rank=2), rosa.IA3Config()], ids=lambda config: config.method)
def test_a_model_that_reads_a_weight_of_torchao_gets_the_change(config: rosa.AdapterConfig) -> None:
    model = rosa.inject(block(QUANTISERS["torchao"](nn.Linear(32, 64))), config)
    layer, x = model.layers[0], torch.randn(3, 32)
    base = layer(x).detach()
    with torch.no_grad():
        for parameter in layer.own_parameters().values():
            parameter.add_(0.1)
    assert (layer(x) - base).abs().max() > 0.05
    torch.testing.assert_close(nn.functional.linear(x, layer.weight, layer.bias), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_model_that_is_dequantised_later_merges(kind: str) -> None:
    model = block(QUANTISERS[kind](nn.Linear(32, 64)))
    rosa.inject(model, rosa.LoraConfig(rank=2))
    with torch.no_grad():
        model.layers[0].B.fill_(0.1)
    model.layers[0].base = nn.Linear(32, 64)
    x = torch.randn(3, 32)
    expected = model.layers[0](x)
    torch.testing.assert_close(rosa.unwrap(model).layers[0](x), expected, rtol=1e-4, atol=1e-5)


def test_a_quantised_layer_with_a_forward_of_its_own_is_refused() -> None:
    class Gated(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).sigmoid()

    with pytest.raises(rosa.AdapterError, match="forward of its own"):
        rosa.inject(block(QUANTISERS["torchao"](Gated(32, 64))), rosa.LoraConfig(rank=2, target_modules=["layers.0"]))


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_quantised_module_that_should_train_whole_is_refused(kind: str) -> None:
    model = plain_llama()
    model.lm_head = QUANTISERS[kind](nn.Linear(64, 64, bias=False))
    before = [type(module) for module in model.modules()]
    with pytest.raises(rosa.AdapterError, match="modules_to_save: lm_head holds a quantised weight"):
        rosa.inject(model, rosa.LoraConfig(rank=2, modules_to_save=["lm_head"]))
    assert [type(module) for module in model.modules()] == before


@pytest.mark.parametrize("kind", QUANTISERS)
def test_factors_of_another_base_are_refused_beside_quantised_layers(kind: str, tmp_path: Path) -> None:
    model = rosa.inject(quantised_llama(kind, "down_proj"), rosa.RosaConfig(rank=1, target_modules=["q_proj"]))
    train_steps(model, make_optimizer(model))
    rosa.resample(model, 1)
    rosa.save_adapter(model, tmp_path)
    other = quantised_llama(kind, "down_proj")
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.add_(0.1)
    with pytest.raises(rosa.AdapterError, match="belongs to another base model"):
        rosa.load_adapter(other, tmp_path)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_another_quantised_base_is_warned_of(kind: str, tmp_path: Path) -> None:
    rosa.save_adapter(adapted(kind), tmp_path)
    other = quantised_llama(kind)
    with torch.no_grad():
        other.model.embed_tokens.weight.add_(0.1)
    with pytest.warns(UserWarning, match="saved with another base model"):
        rosa.load_adapter(other, tmp_path)


@pytest.mark.parametrize("kind", QUANTISERS)
def test_a_conversion_to_lora_names_the_way_out(kind: str, tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    with pytest.raises(rosa.AdapterError, match=r"this model is quantised: save the adapter"):
        to_peft_lora(adapted(kind), plain_llama(), tmp_path / "x")
    with pytest.raises(rosa.AdapterError, match=r"base is quantised: save the adapter"):
        to_peft_lora(rosa.inject(plain_llama(), CONFIGS[0]), quantised_llama(kind), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_weight_that_is_no_tensor_is_none_of_ours(tmp_path: Path) -> None:
    model = plain_llama()
    model.odd = nn.Module()
    model.odd.weight = 0.5  # type: ignore[assignment]
    rosa.inject(model, CONFIGS[0])
    rosa.save_adapter(model, tmp_path)
    assert rosa.parameter_report(model).total == sum(p.numel() for p in plain_llama().parameters())


def test_an_adapter_loads_without_training_where_no_gradient_passes(tmp_path: Path) -> None:
    rosa.save_adapter(adapted("stand-in"), tmp_path)
    model = quantised_llama()
    model.hf_quantizer = SimpleNamespace(is_trainable=False)
    with pytest.raises(rosa.AdapterError, match="no gradient passes"):
        rosa.load_adapter(model, tmp_path)
    assert not rosa.adapter_layers(model)
    assert rosa.adapter_layers(rosa.load_adapter(model, tmp_path, trainable=False))
