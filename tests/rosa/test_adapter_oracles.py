"""Comparison with PEFT's LoRA and PiSSA, and with the published numbers of trainable parameters."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import rosa
from tests.rosa.cases import FAMILIES, adapt, logits, make_model, tokens, trained

peft = pytest.importorskip("peft")
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def peft_model(family: str, dtype: torch.dtype = torch.float32, spread: float = 0.2, **settings: Any) -> Any:
    config = peft.LoraConfig(target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2", **settings)
    model = make_model(family, dtype=dtype, initializer_range=spread)
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def peft_layers(model: Any) -> dict[str, Any]:
    prefix = "base_model.model."
    return {name.removeprefix(prefix): m for name, m in model.named_modules() if hasattr(m, "lora_A")}


def pass_back(model: Any) -> tuple[Tensor, float]:
    """Logits in training mode, and the loss, with a fixed seed for dropout. The parameters keep their gradients."""
    model.train()
    torch.manual_seed(11)
    out = model(input_ids=tokens(), labels=tokens())
    out.loss.backward()
    return out.logits.detach(), float(out.loss.detach())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("alpha", "dropout", "scale"),
    [(None, 0.0, "standard"), (16.0, 0.0, "standard"), (3.0, 0.4, "standard"), (3.0, 0.4, "rslora")],
)
def test_lora_is_pefts_lora(family: str, alpha: float | None, dropout: float, scale: Any) -> None:
    rank, rslora = 4, scale == "rslora"
    # float64 with large weights, and float32 with weights of GPT-2's size, where rounding alone is below 1e-6
    for dtype, spread, tolerance in ((torch.float64, 0.2, 1e-12), (torch.float32, 0.02, 1e-6)):
        config = rosa.LoraConfig(rank=rank, alpha=alpha, dropout=dropout, scale=scale)
        ours = adapt(family, config, dtype, initializer_range=spread)
        options = dict(lora_alpha=alpha or rank, lora_dropout=dropout, use_rslora=rslora)
        theirs = peft_model(family, dtype, spread, r=rank, **options)
        mine, others = rosa.adapter_layers(ours), peft_layers(theirs)
        assert list(mine) == list(others)
        torch.manual_seed(5)
        for name, layer in mine.items():
            with torch.no_grad():
                layer.B.normal_(0, spread)
                others[name].lora_A["default"].weight.copy_(layer.A.T)
                others[name].lora_B["default"].weight.copy_(layer.B.T)
        (found, loss), (wanted, their_loss) = pass_back(ours), pass_back(theirs)
        torch.testing.assert_close(found, wanted, atol=tolerance * max(1, float(wanted.abs().max())), rtol=0)
        assert loss == pytest.approx(their_loss, rel=tolerance)
        for name, layer in mine.items():
            for grad, other in (
                (layer.A.grad, others[name].lora_A["default"].weight.grad.T),
                (layer.B.grad, others[name].lora_B["default"].weight.grad.T),
            ):
                assert grad.abs().max() > 0
                torch.testing.assert_close(grad, other, atol=3 * tolerance * float(other.abs().max()), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_begins_as_pefts_lora_does(family: str) -> None:
    ours = rosa.adapter_layers(adapt(family, rosa.LoraConfig(rank=12)))
    theirs = peft_layers(peft_model(family, r=12))
    for name, layer in ours.items():
        bound = 1 / math.sqrt(layer.in_features)
        other = theirs[name].lora_A["default"].weight
        for start in (layer.A, other):
            assert 0.9 * bound < start.abs().max() <= bound
            assert float(start.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.15)  # uniform
        assert not layer.B.any() and not theirs[name].lora_B["default"].weight.any()
    assert len({layer.A[0, 0].item() for layer in ours.values()}) == len(ours)  # each layer its own


@pytest.mark.parametrize("family", FAMILIES)
def test_rosa_on_top_directions_without_resample_is_pissa(family: str) -> None:
    config = rosa.RosaConfig(rank=4, sample_method="top", level="never", bias="none")
    ours = adapt(family, config, initializer_range=0.02)
    theirs = peft_model(family, spread=0.02, r=4, lora_alpha=4, init_lora_weights="pissa")  # by a float32 SVD
    mine, others = rosa.adapter_layers(ours), peft_layers(theirs)
    for name, layer in mine.items():
        rest = others[name].base_layer.weight
        torch.testing.assert_close(layer.base.weight, rest, atol=3e-6, rtol=0)
        their_pair = (others[name].lora_B["default"].weight @ others[name].lora_A["default"].weight).T
        torch.testing.assert_close(layer.A @ layer.B, their_pair, atol=3e-6, rtol=0)
    start = logits(ours)
    torch.testing.assert_close(start, logits(theirs), atol=3e-6, rtol=0)
    for model in (ours, theirs):  # plain SGD: its steps do not depend on the signs of singular vectors
        optimizer = torch.optim.SGD(trained(model), lr=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            pass_back(model)
            optimizer.step()
    assert (logits(ours) - start).abs().max() > 3e-3  # 300 times the tolerance below
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)


SIZES = {
    "gpt2": dict(n_embd=768, n_layer=12, n_head=12),
    "gpt2-medium": dict(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": dict(n_embd=1280, n_layer=36, n_head=20),
}
FULL = {"gpt2": "124M", "gpt2-medium": "354M", "gpt2-large": "774M"}  # printed with the decimals cut off
PUBLISHED = {  # ratio: rank R, trained by LoRA, trained by ROSA (Hameed and Rabusseau 2023)
    "gpt2": {
        0.0125: (9, "1.3M", "1.4M"), 0.025: (19, "2.8M", "2.9M"),
        0.05: (38, "5.6M", "5.7M"), 0.1: (76, "11.2M", "11.3M"),
    },
    "gpt2-medium": {
        0.0125: (12, "4.7M", "4.9M"), 0.025: (25, "9.8M", "10.1M"),
        0.05: (51, "20.1M", "20.3M"), 0.1: (102, "40.1M", "40.3M"),
    },
    "gpt2-large": {
        0.0125: (16, "11.8M", "12.2M"), 0.025: (32, "23.6M", "24.0M"),
        0.05: (64, "47.2M", "47.6M"), 0.1: (128, "94.4M", "94.8M"),
    },
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_published_parameter_counts(size: str) -> None:
    with torch.device("meta"):
        plain = GPT2LMHeadModel(GPT2Config(**SIZES[size]))
    total = sum(p.numel() for p in plain.parameters())
    assert f"{total // 10**6}M" == FULL[size]
    found = {}
    for ratio in PUBLISHED[size]:
        counts = []
        for method in (rosa.LoraConfig, rosa.RosaConfig):
            report = rosa.parameter_report(rosa.inject(copy.deepcopy(plain), method(rank=ratio)))
            assert report.total == total and len(report.layers) == 4 * plain.config.n_layer
            counts.append(f"{report.trainable / 1e6:.1f}M")
        (rank,) = {layer.rank for layer in report.layers}
        found[ratio] = (rank, *counts)
    assert found == PUBLISHED[size]
