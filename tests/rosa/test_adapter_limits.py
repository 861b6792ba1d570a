"""Values that are not finite, and unfit settings or models, are errors of a resample that change nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rosa
from rosa.resampling import SubspaceLayer
from tests.rosa.cases import adapt, digests, logits, make_model, make_optimizer, train_steps
from tests.rosa.peft_models import adapt_by_peft

NAME = "transformer.h.1.mlp.c_proj"  # the last layer that a resample would write


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["A", "B", "weight"])
def test_values_that_are_not_finite_are_named_before_a_resample(part: str, value: float) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    layer = rosa.adapter_layers(model)[NAME]
    {"A": layer.A, "B": layer.B, "weight": layer.base.weight}[part].data[1, 1] = value
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=rf"h\.1\.mlp\.c_proj: values of its {part} are not finite"):
        rosa.resample(model, 1, make_optimizer(model))
    assert digests(model) == before


def test_a_pair_whose_product_overflows_is_named() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    layer = rosa.adapter_layers(model)[NAME]
    layer.A.data.fill_(1e30)
    layer.B.data.fill_(1e30)
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=r"h\.1\.mlp\.c_proj: W \+ A B is larger than torch\.float32"):
        rosa.resample(model, 1)
    assert digests(model) == before


@pytest.mark.parametrize("scale", [1e160, 1e250, 1e-200])
@pytest.mark.parametrize("split", ["sqrt", "left"])
def test_float64_weights_of_any_size_are_factorised(scale: float, split: str) -> None:
    """The squares of the numbers overflow float64: the function stays the same, and A B has singular values of W."""
    torch.manual_seed(0)
    weight = torch.randn(7, 5, dtype=torch.float64) * scale
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(5, 7, bias=False, dtype=torch.float64)])
    model.layers[0].weight.data.copy_(weight)
    rosa.inject(model, rosa.RosaConfig(rank=3, sample_method="top", factor_split=split))
    rosa.resample(model, 1)
    (layer,) = rosa.adapter_layers(model).values()
    pair = (layer.A.detach() @ layer.B.detach()).T
    torch.testing.assert_close((layer.base.weight.detach() + pair) / scale, weight / scale, rtol=0, atol=1e-13)
    values = torch.linalg.svdvals(pair / scale)[:3]
    torch.testing.assert_close(values, torch.linalg.svdvals(weight / scale)[:3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("number", [0, -1, 1.5, "1", True, None])
def test_a_resample_has_a_number(number: Any) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match="number="):
        rosa.resample(model, number)
    assert digests(model) == before


def test_a_model_without_adapters_cannot_be_resampled() -> None:
    model = make_model("gpt2")
    with pytest.raises(rosa.AdapterError, match="no adapters to resample"):
        rosa.resample(model, 1)
    for config in (rosa.RosaConfig(rank=2), rosa.LoraConfig(rank=2)):
        with pytest.raises(rosa.AdapterError, match=f"those of {config.method}, the model has no adapters"):
            rosa.Resampler(model, None, config)
    assert not rosa.Resampler(model, None, None).after_epoch(1, 2)  # full fine-tuning has no settings


def test_settings_of_another_method_are_refused() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    with pytest.raises(rosa.AdapterError, match="those of lora, the model has rosa adapters"):
        rosa.Resampler(model, None, rosa.LoraConfig(rank=2))
    assert all(isinstance(layer, SubspaceLayer) for layer in rosa.adapter_layers(model).values())


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=2), rosa.LoraConfig(rank=2)], ids=lambda config: config.method)
def test_adapters_with_values_are_not_started_again(config: Any, tmp_path: Path) -> None:
    """ROSA's would lose A B, which is a part of the pretrained weight, and LoRA's what they trained."""
    model = adapt("gpt2", config)
    train_steps(model, make_optimizer(model))
    rosa.save_adapter(model, tmp_path)
    for one in (model, rosa.load_adapter(make_model("gpt2"), tmp_path)):
        before = digests(one)
        with pytest.raises(rosa.AdapterError, match="have values already"):
            rosa.start_adapters(one)
        assert digests(one) == before
    with pytest.raises(rosa.AdapterError, match="have values already"):
        rosa.start_adapters(adapt_by_peft())
    state = copy.deepcopy(model.state_dict())
    loaded = rosa.inject(make_model("gpt2"), config, start=False)
    loaded.load_state_dict(state)
    with pytest.raises(rosa.AdapterError, match="have values already"):
        rosa.start_adapters(loaded)
    with rosa.disabled(loaded):
        torch.testing.assert_close(logits(loaded), logits(make_model("gpt2")))
    late = rosa.start_adapters(rosa.inject(make_model("gpt2"), config, start=False))
    torch.testing.assert_close(logits(late), logits(make_model("gpt2")))


def test_the_base_is_what_was_loaded_before_the_start() -> None:
    model = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2), start=False)
    base = {name: 1.1 * values for name, values in model.state_dict().items() if ".base." in name}
    model.load_state_dict(base, strict=False)
    rosa.start_adapters(model)
    before = logits(model)
    train_steps(model, make_optimizer(model))
    with rosa.disabled(model):
        torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)


def test_weights_whose_random_factors_overflow_are_refused_at_injection_too() -> None:
    """Their lengths are sums of squares in float32. The singular basis is found in float64."""
    for basis, huge in (("random", True), ("random", False), ("singular", True)):
        model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
        if huge:
            model[1].weight.data.fill_(1e30)
        before = copy.deepcopy(model)
        settings = rosa.RosaConfig(rank=4, target_modules=["0", "1"], basis=basis)
        if basis == "random" and huge:
            with pytest.raises(rosa.AdapterError, match=r"^1: values of its A and B are not finite"):
                rosa.inject(model, settings)
            assert all(type(module) is nn.Linear for module in model)
            torch.testing.assert_close(model.state_dict(), before.state_dict())
        else:
            assert rosa.inject(model, settings)(torch.ones(2, 16)).isfinite().all()
