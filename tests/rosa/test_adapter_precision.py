"""Dtypes: 16-bit weights with float32 pairs, autocast and wrong dtypes, compared with PEFT and ``nn.Linear``."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rosa
from rosa.methods.lora import LoraLayer
from tests.rosa.cases import FAMILIES, adapt, logits, make_model, make_optimizer, tokens, train_steps, trained
from tests.rosa.test_adapter_oracles import TARGETS, pass_back, peft_layers

peft = pytest.importorskip("peft")
HALVES = (torch.bfloat16, torch.float16)
TYPES = (torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64)
CONFIGS = {
    "rosa": rosa.RosaConfig(rank=4, bias="none"),
    "lora": rosa.LoraConfig(rank=4, alpha=6),
    "drop": rosa.LoraConfig(dropout=0.4),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="adapting 16-bit weights")
        yield


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_on_a_bfloat16_base_is_pefts(family: str, dropout: float, autocast: bool) -> None:
    config = rosa.LoraConfig(rank=4, alpha=6.0, dropout=dropout)
    ours = adapt(family, config, torch.bfloat16)
    settings = dict(target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2")
    theirs = peft.get_peft_model(
        make_model(family, dtype=torch.bfloat16),
        peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, **settings),  # autocast_adapter_dtype is its default
    )
    mine, others = rosa.adapter_layers(ours), peft_layers(theirs)
    for name, layer in mine.items():
        a, b = (getattr(others[name], f"lora_{key}")["default"].weight for key in "AB")
        assert layer.A.dtype == layer.B.dtype == a.dtype == torch.float32
        with torch.no_grad():
            layer.B.normal_(0, 0.2)
            a.copy_(layer.A.T)
            b.copy_(layer.B.T)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (found, _), (wanted, _) = pass_back(ours), pass_back(theirs)
    assert found.dtype == wanted.dtype == torch.bfloat16
    exact = logits(copy.deepcopy(ours).float()) if not dropout else wanted.float()
    scale = float(exact.abs().max())
    torch.testing.assert_close(found, wanted, atol=0.02 * scale, rtol=0)
    for name, layer in mine.items():
        for grad, key in ((layer.A.grad, "A"), (layer.B.grad, "B")):
            other = getattr(others[name], f"lora_{key}")["default"].weight.grad.T
            assert grad.dtype == torch.float32
            assert (grad - other).norm() < 0.05 * other.norm()
    assert (found.float() - exact).norm() < 1.1 * (wanted.float() - exact).norm() + 1e-6  # as close to the exact result


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("method", CONFIGS)
def test_every_entry_of_a_float32_pair_trains_on_a_16_bit_base(method: str, dtype: torch.dtype) -> None:
    model = adapt("llama", CONFIGS[method], dtype)
    before = [p.detach().clone() for p in trained(model)]
    assert {p.dtype for p in trained(model)} == {torch.float32}
    train_steps(model, make_optimizer(model, lr=1e-5), steps=3)
    changed = [float((p != old).double().mean()) for p, old in zip(trained(model), before, strict=True)]
    assert min(changed) > 0.95
    for layer in rosa.adapter_layers(model).values():
        x = torch.randn(3, layer.in_features, dtype=dtype)
        assert layer(x).dtype == layer.weight.dtype == layer.base.weight.dtype == dtype
        exact = x.float() @ layer.weight_mn.float() + layer.scale * (x.float() @ layer.A) @ layer.B
        torch.testing.assert_close(layer.eval()(x).float(), exact, atol=0.02, rtol=0.02)


def effective(layer: Any) -> Tensor:
    found: Tensor = layer.weight_mn.double() + layer.delta().detach().double()
    return found


def distance(some: list[Tensor], others: list[Tensor]) -> float:
    return math.hypot(*(float((a - b).norm()) for a, b in zip(some, others, strict=True)))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resample_rounds_once_and_says_what_that_lost(family: str, dtype: torch.dtype) -> None:
    model = adapt(family, CONFIGS["rosa"], dtype)
    layers = list(rosa.adapter_layers(model).values())
    start = [effective(layer) for layer in layers]
    optimizer = make_optimizer(model, lr=2e-3)
    train_steps(model, optimizer, steps=4)
    before = [effective(layer) for layer in layers]
    lost = rosa.resample(model, 1, optimizer)
    after = [effective(layer) for layer in layers]
    for layer, old, new in zip(layers, before, after, strict=True):
        half_ulp = torch.finfo(dtype).eps / 2 * layer.weight_mn.double().abs()
        assert ((new - old).abs() <= half_ulp + 1e-6).all()  # rounding a weight twice gives a larger error
    assert lost == pytest.approx(distance(after, before) / distance(before, start), rel=1e-3)
    assert 0.001 < lost < 0.1


def test_a_large_loss_by_rounding_is_told_and_float32_has_none() -> None:
    config = rosa.RosaConfig(rank=4)
    model = adapt("llama", config, torch.bfloat16)
    resampler = rosa.Resampler(model, make_optimizer(model, lr=1e-5), config)
    train_steps(model, resampler.optimizer, steps=1)
    with pytest.warns(UserWarning, match=r"rounding to 16 bits lost \d+% of what was trained.*float32"):
        resampler.after_epoch(1, 2)
    assert resampler.rounding_lost is not None and resampler.rounding_lost > 1
    model = adapt("llama", config)
    assert rosa.resample(model, 1) is None


def test_a_loaded_adapter_counts_from_what_was_loaded(tmp_path: Any) -> None:
    model = adapt("llama", CONFIGS["rosa"], torch.bfloat16)
    train_steps(model, make_optimizer(model), steps=3)
    rosa.save_adapter(model, tmp_path, exact=True)
    other = adapt("llama", CONFIGS["rosa"], torch.bfloat16)
    rosa.load_adapter(other, tmp_path)
    train_steps(other, make_optimizer(other, lr=1e-4), steps=1)
    loaded, before = ([effective(layer) for layer in rosa.adapter_layers(m).values()] for m in (model, other))
    with pytest.warns(UserWarning, match="rounding"):
        lost = rosa.resample(other, 1)
    after = [effective(layer) for layer in rosa.adapter_layers(other).values()]
    assert lost == pytest.approx(distance(after, before) / distance(before, loaded), rel=1e-3)


def outcome(layer: nn.Module, x: Tensor, autocast: bool) -> Any:
    """The dtype of the output, or the kind of error."""
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return layer(x).dtype
    except RuntimeError as error:
        return type(error)


@pytest.mark.parametrize("given", TYPES)
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", CONFIGS)
def test_types_are_refused_and_given_as_by_linear(method: str, own: torch.dtype, given: torch.dtype) -> None:
    plain = nn.Linear(8, 8, dtype=own)
    model = nn.Module()
    model.layers = nn.ModuleList([copy.deepcopy(plain)])
    layer = rosa.inject(model, CONFIGS[method]).layers[0]
    x = torch.ones(3, 8, dtype=given)
    for autocast in (False, True):
        for training in (False, True):
            layer.train(training)
            assert outcome(layer, x, autocast) == outcome(plain, x, autocast)
    assert outcome(plain, torch.ones(3, 8, dtype=own), False) == own


def test_a_float64_layer_keeps_its_precision_under_autocast() -> None:
    model = adapt("llama", CONFIGS["rosa"], torch.float64)
    layer = next(iter(rosa.adapter_layers(model).values()))
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), torch.autocast("cpu", enabled=False)(layer)(x))


def test_under_autocast_a_small_pair_is_whole_on_average() -> None:
    """The sum of two outputs in bfloat16 would lose half of it."""
    torch.manual_seed(6)
    layer = LoraLayer("fc", nn.Linear(256, 256, bias=False).requires_grad_(False), rosa.LoraConfig(rank=8))
    x = torch.randn(256, 256)
    with torch.no_grad():
        layer.initialise()
        layer.B.normal_(0, 4e-4)
        pair = (x @ layer.A) @ layer.B
        assert pair.norm() < 2e-3 * layer.base(x).norm()
        with torch.autocast("cpu", torch.bfloat16):
            found = layer(x).float() - layer.base(x).float()
    assert float((found * pair).sum() / pair.square().sum()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("method", ["rosa", "lora"])
def test_a_pair_narrower_than_the_weight_leaves_the_weight_its_precision(method: str) -> None:
    layer = next(iter(rosa.adapter_layers(adapt("llama", CONFIGS[method])).values()))
    layer.A.data, layer.B.data = layer.A.data.bfloat16(), layer.B.data.bfloat16()
    with torch.no_grad():
        layer.A.zero_()
        x = torch.randn(3, layer.in_features)
        assert torch.equal(layer(x), layer.base(x)) and torch.equal(layer.weight, layer.base.weight)


def test_a_16_bit_model_converted_after_the_injection_still_runs() -> None:
    for method in ("rosa", "lora"):
        model = adapt("llama", CONFIGS[method])
        expected = logits(model)
        model.bfloat16()
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(logits(model).float(), expected, atol=0.05 * float(expected.abs().max()), rtol=0)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        if method == "rosa":
            before = logits(model)
            with pytest.raises(rosa.AdapterError, match="converted after the adapter was added"):
                rosa.resample(model, 1)  # its draws would be rounded
            assert logits(model).equal(before)
