"""``sample_method=gradient``: the gradients of weights, what they say of directions, and the draw by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rosa
from rosa.subspace import choose_directions, gradient_weights, seeded_generator, short_side_vectors
from tests.conftest import make_config
from tests.rosa.cases import FAMILIES, VOCABULARY, make_model
from tests.training.reading import points, stopped_at
from utils.errors import UserError

CONFIG = rosa.RosaConfig(rank=3, sample_method="gradient", level="step", every=2)


def loss_of(model: Any, seed: int) -> Tensor:
    ids = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(seed))
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_merged_weights(family: str) -> None:
    """Summed over backward passes, whatever trains; those of the pair stay what they are."""
    model = make_model(family).double()
    rosa.inject(model, CONFIG)
    with rosa.weight_gradients(model):
        for seed in (1, 2):
            loss_of(model, seed).backward()
    found = {name: layer.gradient for name, layer in rosa.adapter_layers(model).items()}
    pair = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.zero_grad()
    for seed in (1, 2):
        loss_of(model, seed).backward()
    for name, layer in rosa.adapter_layers(model).items():
        torch.testing.assert_close(pair[f"{name}.A"], layer.A.grad)
        assert found[name] is layer.gradient, "passes outside of the block add nothing"

    plain = rosa.unwrap(model).requires_grad_(True)
    plain.zero_grad()
    for seed in (1, 2):
        loss_of(plain, seed).backward()
    for name, gradient in found.items():
        weight = plain.get_submodule(name).weight
        expected = weight.grad if family == "gpt2" else weight.grad.T
        torch.testing.assert_close(gradient, expected.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("m", "n"), [(12, 7), (7, 12), (8, 8)])
def test_a_direction_counts_by_the_squared_gradients_that_its_pair_would_have(m: int, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, gradient = (torch.randn(m, n, dtype=torch.float64, generator=generator) for _ in range(2))
    found = gradient_weights(weight, gradient, short_side_vectors([weight])[0])
    u, values, vt = torch.linalg.svd(weight, full_matrices=False)
    a, b = (u * values.sqrt()).requires_grad_(), (values.sqrt()[:, None] * vt).requires_grad_()
    ((a @ b) * gradient).sum().backward()  # dL/d(A B) = G
    expected = (a.grad.square().sum(0) + b.grad.square().sum(1)) / values
    torch.testing.assert_close(found, expected)


def test_directions_are_drawn_in_proportion_and_without_replacement() -> None:
    weights, draws = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64), 4000
    counts, second = torch.zeros(4), torch.zeros(4)
    for number in range(draws):
        counts[choose_directions(4, 1, "gradient", seeded_generator(0, number, "a"), weights)] += 1
        second[choose_directions(4, 2, "gradient", seeded_generator(1, number, "a"), weights)] += 1
    assert counts[0] == second[0] == 0
    expected = draws * weights[1:].float() / 8
    assert float(((counts[1:] - expected) ** 2 / expected).sum()) < 18.4  # the 0.9999 quantile for 2 degrees of freedom
    pairs = torch.tensor([1 / 8 * (1 + 2 / 6 + 5 / 3), 2 / 8 * (1 + 1 / 7 + 5 / 3), 5 / 8 * (1 + 1 / 7 + 2 / 6)])
    torch.testing.assert_close(second[1:] / draws, pairs, rtol=0, atol=0.03)
    assert choose_directions(4, 3, "gradient", seeded_generator(0), torch.zeros(4)).unique().numel() == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resample_takes_the_directions_of_the_gradient_and_keeps_the_function(family: str) -> None:
    model = make_model(family)
    rosa.inject(model, CONFIG)
    optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=0.01)
    with pytest.raises(rosa.AdapterError, match=r"has no gradient to draw directions by: .*rosa\.weight_gradients"):
        rosa.resample(model, 1, optimizer)
    wanted = [1, 4, 9]

    def gradients() -> None:
        for layer in rosa.adapter_layers(model).values():
            u, _, vt = torch.linalg.svd(layer.weight_mn + layer.delta(), full_matrices=False)
            layer.gradient = u[:, wanted] @ vt[wanted]

    layers = rosa.adapter_layers(model)
    before, weights = loss_of(model, 3), {name: layer.weight_mn + layer.delta() for name, layer in layers.items()}
    resampler = rosa.Resampler(model, optimizer, CONFIG, gradients=gradients)
    assert resampler.after_step(2, 10)
    torch.testing.assert_close(loss_of(model, 3), before, rtol=1e-5, atol=1e-6)
    for name, layer in layers.items():
        u, values, vt = torch.linalg.svd(weights[name], full_matrices=False)
        torch.testing.assert_close(layer.delta(), (u[:, wanted] * values[wanted]) @ vt[wanted], rtol=1e-3, atol=1e-4)
        assert layer.gradient is None
    layer = next(iter(layers.values()))

    def spoilt() -> None:
        layer.gradient = torch.full((2, 2), torch.nan)

    resampler.gradients = spoilt
    with pytest.raises(rosa.AdapterError, match="is not finite: the loss of a batch is not, or it overflows in fp16"):
        resampler.resample()
    resampler.gradients = lambda: None
    with pytest.raises(rosa.AdapterError, match="has no gradient"):
        resampler.resample()


def test_a_layer_that_no_pass_reaches_draws_at_random() -> None:
    """Such as one of an image model's tower, or an expert that no token was sent to."""
    model = make_model("llama")
    model.model.idle = torch.nn.ModuleList([torch.nn.Linear(24, 24)])
    rosa.inject(model, CONFIG)
    idle = rosa.adapter_layers(model)["model.idle.0"]
    before: Any = idle.A.clone()  # type: ignore[operator]
    rosa.Resampler(model, None, gradients=lambda: loss_of(model, 1).backward()).resample()
    assert not torch.equal(idle.A, before)


def test_a_training_draws_by_gradients_and_goes_on_after_a_stop(train: Any, tmp_path: Path) -> None:
    settings = ("fnmodel.name=rosa", "fnmodel.rosa.level=step", "fnmodel.rosa.every=3", "fnmodel.params.rank=2")
    gradient = (*settings, "fnmodel.rosa.sample_method=gradient")
    whole = train(*gradient, f"output.path={tmp_path / 'whole'}")
    assert points(whole, "validation", "loss") != points(train(*settings), "validation", "loss")
    halves = (*gradient, f"output.path={tmp_path / 'halves'}")
    with stopped_at(7):
        train(*halves)
    assert points(train(*halves), "validation", "loss") == points(whole, "validation", "loss")
    train(*gradient, f"output.path={tmp_path / 'dry'}", "dry_run=true")
    with pytest.raises(UserError, match=r"sample_method=gradient does not work with train\.compile=true"):
        make_config(*gradient, "train.compile=true")
