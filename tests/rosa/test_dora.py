"""DoRA is PEFT's DoRA, and its own formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rosa
from rosa.methods.dora import DoraLayer
from tests.rosa.cases import FAMILIES, adapt, logits, trained
from tests.rosa.test_adapter_oracles import pass_back, peft_layers, peft_model


def set_both(ours: Any, theirs: Any, spread: float) -> None:
    """The same A, a B that is not zero, and magnitudes off those of W, in both models."""
    torch.manual_seed(5)
    others = peft_layers(theirs)
    with torch.no_grad():
        for name, layer in rosa.adapter_layers(ours).items():
            magnitude = others[name].lora_magnitude_vector["default"].weight
            torch.testing.assert_close(layer.magnitude, magnitude, atol=1e-6, rtol=0)  # W's norms, at the start
            layer.B.normal_(0, spread)
            layer.magnitude.mul_(1 + 0.3 * torch.rand_like(layer.magnitude))
            magnitude.copy_(layer.magnitude)
            others[name].lora_A["default"].weight.copy_(layer.A.T)
            others[name].lora_B["default"].weight.copy_(layer.B.T)


def pairs_of(ours: Any, theirs: Any) -> list[tuple[nn.Parameter, Any, bool]]:
    """Each trained parameter with PEFT's, and whether that is stored transposed."""
    found = []
    for name, other in peft_layers(theirs).items():
        layer = rosa.adapter_layers(ours)[name]
        found.append((layer.A, other.lora_A["default"].weight, True))
        found.append((layer.B, other.lora_B["default"].weight, True))
        found.append((layer.magnitude, other.lora_magnitude_vector["default"].weight, False))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("alpha", "dropout", "scale"), [(4.0, 0.0, "standard"), (16.0, 0.0, "rslora"), (3.0, 0.4, "standard")]
)
def test_dora_is_pefts_dora(family: str, alpha: float, dropout: float, scale: Any) -> None:
    """Outputs, gradients, and parameters after three steps, also through a merge."""
    for dtype, spread, tolerance in ((torch.float64, 0.2, 1e-11), (torch.float32, 0.02, 1e-6)):
        config = rosa.DoraConfig(rank=4, alpha=alpha, dropout=dropout, scale=scale)
        ours = adapt(family, config, dtype, initializer_range=spread)
        options = dict(lora_alpha=alpha, lora_dropout=dropout, use_rslora=scale == "rslora", use_dora=True)
        theirs = peft_model(family, dtype, spread, r=4, **options)
        set_both(ours, theirs, spread)
        (found, loss), (wanted, their_loss) = pass_back(ours), pass_back(theirs)
        torch.testing.assert_close(found, wanted, atol=tolerance * max(1, float(wanted.abs().max())), rtol=0)
        assert loss == pytest.approx(their_loss, rel=tolerance)
        for own, other, transposed in pairs_of(ours, theirs):
            grad = other.grad.T if transposed else other.grad
            assert grad.abs().max() > 0
            torch.testing.assert_close(own.grad, grad, atol=5 * tolerance * float(grad.abs().max()), rtol=0)
        optimizers = [torch.optim.SGD(trained(model), lr=0.1) for model in (ours, theirs)]
        for _ in range(3):
            for model, optimizer in zip((ours, theirs), optimizers, strict=True):
                optimizer.zero_grad()
                pass_back(model)
                optimizer.step()
        for own, other, transposed in pairs_of(ours, theirs):
            torch.testing.assert_close(own, other.T if transposed else other, atol=tolerance, rtol=0)
        apart, size = logits(ours), max(1, float(logits(ours).abs().max()))
        torch.testing.assert_close(logits(rosa.merge(ours)), apart, atol=10 * tolerance * size, rtol=0)
        torch.testing.assert_close(logits(theirs.merge_and_unload()), apart, atol=10 * tolerance * size, rtol=0)


def test_the_weight_that_models_read_has_the_gradients_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    layer = DoraLayer("layer", nn.Linear(6, 5), rosa.DoraConfig(rank=2, alpha=3.0)).double()
    layer.initialise()
    with torch.no_grad():
        layer.B.normal_()
        layer.magnitude.mul_(1.5)
    x, out = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    expected = x @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(x), expected, atol=1e-12, rtol=0)
    parameters = list(layer.own_parameters().values())
    ours, theirs = (torch.autograd.grad((y * out).sum(), parameters) for y in (layer(x), expected))
    assert len(ours) == 3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


def test_a_column_of_zeros_stays_finite() -> None:
    base = nn.Linear(6, 5)
    with torch.no_grad():
        base.weight[2] = 0
    layer = DoraLayer("layer", base, rosa.DoraConfig(rank=2))
    layer.initialise()
    x = torch.randn(4, 6)
    torch.testing.assert_close(layer(x), base(x))
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.own_parameters().values())
