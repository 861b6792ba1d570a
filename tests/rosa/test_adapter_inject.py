"""Injection: the function stays the same, only the declared parameters train, other layers are refused."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import rosa
from rosa.layers import AdapterLayer
from rosa.methods import method_names
from rosa.methods.rosa import RosaLayer
from tests.rosa.cases import (
    BLOCKS,
    CASES,
    FAMILY_CASES,
    LAYERS_PER_BLOCK,
    Case,
    adapt,
    digests,
    logits,
    make_model,
    make_optimizer,
    train_steps,
)
from utils.config.fnmodel import NOT_KEYS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("family", "case"), FAMILY_CASES, ids=str)
def test_adapting_leaves_the_function_unchanged(case: Case, family: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = make_model(family, dtype=dtype)
        before = logits(model)
        assert rosa.inject(model, case.config) is model
        assert len(rosa.adapter_layers(model)) == BLOCKS * LAYERS_PER_BLOCK[family]
        torch.testing.assert_close(logits(model), before, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("family", "case"), FAMILY_CASES, ids=str)
def test_only_the_declared_parameters_move(case: Case, family: str) -> None:
    model = adapt(family, case.config)
    layers = rosa.adapter_layers(model)
    declared = {f"{name}.{key}" for name, layer in layers.items() for key in layer.adapter_parameters()}
    biases = {name for name in declared if name.endswith("bias")}
    expected_biases = case.config.trains_bias and family == "gpt2"
    assert len(biases) == (len(layers) if expected_biases else 0)
    before = digests(model)
    train_steps(model, make_optimizer(model))
    after = digests(model)
    assert {name for name in after if after[name] != before[name]} == declared


@pytest.mark.parametrize(
    ("method", "bias", "trains"),
    [
        ("rosa", "auto", True),
        ("lora", "auto", False),
        ("rosa", "none", False),
        ("lora", "none", False),
        ("rosa", "adapted", True),
        ("lora", "adapted", True),
    ],
)
def test_which_biases_train(method: str, bias: str, trains: bool) -> None:
    model = adapt("gpt2", rosa.methods.methods()[method][0](rank=2, bias=bias))
    moving = {name for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")}
    adapted = {f"{name}.base.bias" for name in rosa.adapter_layers(model)}
    assert moving == (adapted if trains else set())


@pytest.mark.parametrize("case", [case for family, case in FAMILY_CASES if family == "llama"], ids=str)
def test_parameter_report_counts_what_trains(case: Case) -> None:
    model = make_model("llama")
    plain = sum(p.numel() for p in model.parameters())
    report = rosa.parameter_report(rosa.inject(model, case.config))
    assert report.total == plain
    assert report.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert report.trainable == sum(layer.trainable for layer in report.layers)
    for name, layer in rosa.adapter_layers(model).items():  # no biases here
        row = next(row for row in report.layers if row.name == name)
        if isinstance(layer, rosa.LowRankLayer):
            adapt = getattr(case.config, "adapt", "ab")
            sides = [size for size, factor in zip(row.shape, "ab", strict=True) if factor in adapt]
            magnitudes = row.shape[1] if case.config.method == "dora" else 0
            assert row.rank == layer.rank and row.trainable == layer.rank * sum(sides) + magnitudes
        else:
            assert row.rank is None
        if case.config.method == "ia3":
            assert row.trainable == row.shape[0 if layer.on_input else 1]
    shapes = {layer.name.split(".", 3)[3]: layer.shape for layer in report.layers}
    assert shapes["self_attn.k_proj"] == (24, 12) and shapes["mlp.down_proj"] == (40, 24)
    assert f"trainable {report.trainable:,} of {plain:,}" in str(report)


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=2), rosa.LoraConfig(rank=2)], ids=["rosa", "lora"])
def test_zero_matches_raise_with_the_names_that_exist(config: rosa.AdapterConfig) -> None:
    unmatched = [("no_such", "no_such"), (["q_proj", "v_proj"], "q_proj, v_proj"), (["c_attn", "q_proj"], "q_proj")]
    for targets, missing in unmatched:
        config = dataclasses.replace(config, target_modules=targets)
        model = make_model("gpt2")
        before = digests(model)
        with pytest.raises(rosa.AdapterError) as caught:
            rosa.inject(model, config)
        text = str(caught.value)
        assert "transformer.h.{0..1}.attn.c_attn" in text, text
        assert f"nothing to adapt matches {missing}." in text
        assert digests(model) == before and not rosa.adapter_layers(model)
    with pytest.raises(rosa.AdapterError, match="none"):
        rosa.inject(nn.Sequential(nn.Embedding(3, 4)), rosa.LoraConfig(rank=2))


def test_targets_by_name_endings_and_by_expression() -> None:
    model = make_model("gpt2")
    rosa.inject(model, rosa.RosaConfig(rank=2, target_modules=["attn.c_proj", "c_fc"]))
    ends = {"attn.c_proj", "mlp.c_fc"}
    assert set(rosa.adapter_layers(model)) == {f"transformer.h.{i}.{end}" for i in range(BLOCKS) for end in ends}
    model = make_model("llama")
    rosa.inject(model, rosa.LoraConfig(rank=2, target_modules=r"model\.layers\.1\..*_proj"))
    assert len(rosa.adapter_layers(model)) == LAYERS_PER_BLOCK["llama"]
    with pytest.raises(rosa.AdapterError, match="regular expression"):
        rosa.inject(make_model("gpt2"), rosa.RosaConfig(target_modules="c_attn("))
    with pytest.raises(rosa.AdapterError, match="nothing to adapt matches proj"):  # an ending of a name's part is none
        rosa.inject(make_model("gpt2"), rosa.RosaConfig(target_modules=["proj"]))


def test_the_tied_head_is_never_adapted() -> None:
    for targets in (None, ["c_attn", "lm_head"], ".*"):
        model = make_model("gpt2")
        config = rosa.RosaConfig(rank=2, target_modules=targets)
        if isinstance(targets, list):
            with pytest.raises(rosa.AdapterError, match=r"lm_head.*sharing their weight"):
                rosa.inject(model, config)
        else:
            assert "lm_head" not in rosa.adapter_layers(rosa.inject(model, config))
        assert model.lm_head.weight is model.transformer.wte.weight
        assert not isinstance(model.lm_head, AdapterLayer)
    untied = make_model("llama")
    assert "lm_head" not in rosa.adapter_layers(rosa.inject(untied, rosa.LoraConfig(rank=2)))
    untied = make_model("llama")  # if named, an untied head is an ordinary layer
    rosa.inject(untied, rosa.LoraConfig(rank=2, target_modules=["lm_head"]))
    assert set(rosa.adapter_layers(untied)) == {"lm_head"}


def test_a_rank_above_the_full_rank_names_the_layer() -> None:
    model = make_model("llama")
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=r"model\.layers\.0\.self_attn\.k_proj: rank=13 is above 12"):
        rosa.inject(model, rosa.RosaConfig(rank=13))
    assert digests(model) == before and not rosa.adapter_layers(model)
    assert all(p.requires_grad for p in model.parameters())
    rosa.inject(model, rosa.RosaConfig(rank=12))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(rank=0), "rank=0"),
        (dict(rank=-1), "rank=-1"),
        (dict(rank=1.5), "rank=1.5"),
        (dict(rank=True), "rank=True"),
        (dict(bias="all"), "bias=all is not one of auto, adapted, none"),
        (dict(sample_method="best"), "sample_method=best is not one of random, window, top, bottom"),
        (dict(level="batch"), "level=batch"),
        (dict(every=0), "every=0"),
        (dict(every="2"), "every='2' must be a whole number"),
        (dict(every=1.5), "every=1.5 must be a whole number"),
        (dict(every=True), "every=True must be a whole number"),
        (dict(seed="a"), "seed='a' must be a whole number"),
        (dict(seed=0.5), "seed=0.5 must be a whole number"),
        (dict(target_modules=[]), "target_modules"),
        (dict(target_modules=[3]), "target_modules"),
        (dict(target_modules=3), "target_modules=3"),
    ],
)
def test_bad_settings_are_named_before_the_model_is_touched(settings: dict[str, Any], text: str) -> None:
    model = make_model("gpt2")
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=re.escape(text)):
        rosa.inject(model, rosa.RosaConfig(**settings))
    assert digests(model) == before


def test_all_bad_settings_in_one_message() -> None:
    with pytest.raises(rosa.AdapterError, match=r"bias=x.*dropout=2.*rank=0"):
        rosa.inject(make_model("gpt2"), rosa.LoraConfig(rank=0, bias="x", dropout=2))


@pytest.mark.parametrize("config", [None, {"rank": 2}, "rosa", rosa.AdapterConfig(), rosa.RosaConfig])
def test_what_is_no_methods_settings_is_refused(config: Any) -> None:
    model = make_model("gpt2")
    with pytest.raises(rosa.AdapterError, match=r"config must be a BitFitConfig or .* or RosaConfig .*of this lib"):
        rosa.inject(model, config)
    assert not rosa.adapter_layers(model)


def test_adapting_twice_is_refused() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match="unwrap"):
        rosa.inject(model, rosa.LoraConfig(rank=2))
    assert digests(model) == before


def test_a_weight_that_is_not_finite_leaves_the_model_untouched() -> None:
    model = make_model("gpt2")
    model.transformer.h[1].mlp.c_proj.weight.data[3, 4] = float("nan")  # the last layer that would be adapted
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=r"transformer\.h\.1\.mlp\.c_proj: .*not finite"):
        rosa.inject(model, rosa.RosaConfig(rank=2))
    assert digests(model) == before and not rosa.adapter_layers(model)


def test_an_interrupted_injection_restores_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gpt2", dtype=torch.float64)
    before, sample = logits(model), RosaLayer.sample

    def fail_late(layer: RosaLayer, number: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        if layer.name.startswith("transformer.h.1"):
            raise MemoryError
        return sample(layer, number, vectors)

    monkeypatch.setattr(RosaLayer, "sample", fail_late)
    with pytest.raises(MemoryError):
        rosa.inject(model, rosa.RosaConfig(rank=4))
    assert not rosa.adapter_layers(model)
    torch.testing.assert_close(logits(model), before, atol=1e-12, rtol=0)


def test_sixteen_bit_weights_warn() -> None:
    """ROSA rounds them at each resample; LoRA does not change them."""
    with pytest.warns(UserWarning, match="float32"):
        adapt("llama", rosa.RosaConfig(rank=2), dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt("llama", rosa.LoraConfig(rank=2), dtype=torch.bfloat16)


def test_names_do_not_depend_on_wrappers() -> None:
    plain, wrapped = make_model("gpt2"), nn.Module()
    wrapped.module = nn.Module()  # the names under DDP and torch.compile
    wrapped.module._orig_mod = make_model("gpt2")
    for model, targets in ((plain, None), (wrapped, r"transformer\.h\.\d\..*")):
        rosa.inject(model, rosa.RosaConfig(rank=3, target_modules=targets))
    layers, others = rosa.adapter_layers(plain), rosa.adapter_layers(wrapped)
    assert list(layers) == list(others)
    for name, layer in layers.items():
        assert torch.equal(layer.A, others[name].A) and torch.equal(layer.B, others[name].B), name


def test_every_method_file_registers_one_method_with_documented_keys_and_a_case() -> None:
    registered = rosa.methods.methods()
    assert list(registered) == method_names()  # a method has the name of its file
    for name, (config, layer) in registered.items():
        assert layer.__module__ == f"rosa.methods.{name}" and config.method == name
    documented = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text(encoding="utf-8"))["fnmodel"]
    common = {field.name for field in dataclasses.fields(rosa.LowRankConfig)}
    assert set(documented["params"]) == common - set(NOT_KEYS)
    for name, (config, _) in registered.items():
        assert set(documented[name]) == {field.name for field in dataclasses.fields(config)} - common
    assert {case.config.method for case in CASES} == set(registered)
