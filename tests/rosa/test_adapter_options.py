"""ROSA's options, each against an independent computation: GaLore, merge-and-restart LoRA, moments of distributions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rosa
from rosa import resampling, subspace
from rosa.subspace import random_triplets, seeded_generator
from tests.rosa.cases import (
    FAMILIES,
    adapt,
    blocks_weights,
    digests,
    logits,
    make_model,
    tokens,
    train_steps,
    trained,
)

EXACT = dict(atol=1e-12, rtol=0)


def backward(model: Any) -> None:
    model.zero_grad()
    model(input_ids=tokens(), labels=tokens()).loss.backward()


# -- one factor fixed: GaLore --------------------------------------------------------------------------------------


class Galore:
    """GaLore (Zhao et al. 2024, algorithm 2): the optimizer works on Pᵀ G, or G Q, and its update is projected back."""

    def __init__(self, rate: float, projection: Tensor, on_left: bool, kind: str) -> None:
        self.rate, self.p, self.on_left, self.kind = rate, projection, on_left, kind
        self.m = self.v = torch.zeros(())
        self.t = 0

    def step(self, weight: Tensor, gradient: Tensor) -> None:
        low = self.p.T @ gradient if self.on_left else gradient @ self.p
        self.t += 1
        if self.kind == "sgd":
            self.m = 0.9 * self.m + low
            update = self.m
        else:
            self.m, self.v = 0.9 * self.m + 0.1 * low, 0.999 * self.v + 0.001 * low**2
            update = (self.m / (1 - 0.9**self.t)) / ((self.v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        weight -= self.rate * (self.p @ update if self.on_left else update @ self.p.T)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("basis", ["singular", "random"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_one_sided_rosa_takes_the_steps_of_galore(side: str, basis: str, kind: str, family: str) -> None:
    settings = dict(adapt=side, basis=basis, factor_split="orthonormal", start="zero", bias="none")
    ours = adapt(family, rosa.RosaConfig(rank=4, **settings), torch.float64)
    theirs = make_model(family, dtype=torch.float64)
    rate, layers = 0.05 if kind == "sgd" else 0.01, rosa.adapter_layers(ours)
    galore = {
        name: Galore(rate, (layer.A if side == "b" else layer.B.T).detach().clone(), side == "b", kind)
        for name, layer in layers.items()
    }
    if kind == "sgd":
        optimizer: Any = torch.optim.SGD(trained(ours), lr=rate, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(trained(ours), lr=rate, weight_decay=0)
    for _ in range(5):
        backward(ours)
        optimizer.step()
        backward(theirs)
        for name, one in galore.items():
            module = theirs.get_submodule(name)
            transposed = isinstance(module, torch.nn.Linear)
            weight = module.weight.data.T if transposed else module.weight.data
            one.step(weight, module.weight.grad.T if transposed else module.weight.grad)
    before = blocks_weights(make_model(family, dtype=torch.float64))
    for name, weight in blocks_weights(theirs).items():
        layer = layers[name]
        torch.testing.assert_close((layer.weight_mn + layer.A @ layer.B).detach(), weight, atol=1e-9, rtol=0)
        assert (weight - before[name]).abs().max() > 1e-3


@pytest.mark.parametrize(("side", "fixed"), [("a", "B"), ("b", "A")])
def test_a_fixed_factor_neither_trains_nor_takes_memory(side: str, fixed: str, tmp_path: Path) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=4, adapt=side, bias="none"))
    layers = rosa.adapter_layers(model)
    before = {name: layer.get_parameter(fixed).detach().clone() for name, layer in layers.items()}
    optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=0.01)
    train_steps(model, optimizer)
    assert len(optimizer.state) == len(layers)
    for name, layer in layers.items():
        factor = layer.get_parameter(fixed)
        assert list(layer.adapter_parameters()) == [side.upper()]
        assert factor.grad is None and factor not in optimizer.state and torch.equal(factor, before[name])
    rosa.save_adapter(model, tmp_path, exact=True)
    for file, keys in (("adapter", {side.upper()}), ("frozen", {"weight", fixed})):
        assert {key.rsplit(".", 1)[1] for key in load_file(tmp_path / f"{file}.safetensors")} == keys
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path)
    assert digests(loaded) == digests(model)
    rosa.resample(model, 1)
    assert all(not torch.equal(layer.get_parameter(fixed), before[name]) for name, layer in layers.items())


# -- start: zero ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_start_at_zero_takes_the_steps_of_merge_and_restart_lora(family: str) -> None:
    """ReLoRA (Lialin et al. 2023) between two restarts, on the same A: LoRA whose merged weights are adapted again."""
    ours = adapt(family, rosa.RosaConfig(rank=4, start="zero", bias="none"), torch.float64)
    theirs, start = make_model(family, dtype=torch.float64), logits(ours)
    for number in range(3):
        if number:
            rosa.resample(ours, number)
        rosa.inject(theirs, rosa.LoraConfig(rank=4))
        for name, layer in rosa.adapter_layers(theirs).items():
            own = rosa.adapter_layers(ours)[name]
            assert own.A.any() and not own.B.any()
            layer.A.data.copy_(own.A)
        for model in (ours, theirs):
            train_steps(model, torch.optim.AdamW(rosa.parameter_groups(model), lr=1e-2, weight_decay=0.1))
        torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-9, rtol=0)
        theirs = rosa.unwrap(theirs)
    assert (logits(ours) - start).abs().max() > 0.1


# -- the pair ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["ab", "a", "b"])
def test_orthonormal_factors_of_singular_directions(side: str) -> None:
    config = rosa.RosaConfig(rank=4, sample_method="top", factor_split="orthonormal", adapt=side)
    weights = blocks_weights(make_model("llama", dtype=torch.float64))
    for name, layer in rosa.adapter_layers(adapt("llama", config, torch.float64)).items():
        u, s, vt = torch.linalg.svd(weights[name], full_matrices=False)
        scale = (s[:4].mean() if side == "ab" else s.new_ones(())).expand(4)
        left, right = (layer.A.T @ layer.A).detach(), (layer.B @ layer.B.T).detach()
        torch.testing.assert_close(left, torch.diag(s[:4] ** 2 if side == "a" else scale), atol=1e-9, rtol=0)
        torch.testing.assert_close(right, torch.diag(s[:4] ** 2 if side == "b" else scale), atol=1e-9, rtol=0)
        part = (u[:, :4] * (scale if side == "ab" else s[:4])) @ vt[:4]
        torch.testing.assert_close((layer.A @ layer.B).detach(), part, atol=1e-9, rtol=0)


@pytest.mark.parametrize("split", ["sqrt", "left", "orthonormal"])
@pytest.mark.parametrize("side", ["ab", "a", "b"])
def test_a_random_basis_is_orthonormal_and_takes_its_part_of_the_weight(side: str, split: str) -> None:
    config = rosa.RosaConfig(rank=4, basis="random", factor_split=split, adapt=side)
    weights = blocks_weights(make_model("llama", dtype=torch.float64))
    for name, layer in rosa.adapter_layers(adapt("llama", config, torch.float64)).items():
        weight, a, b = weights[name], layer.A.detach(), layer.B.detach()
        on_left = side == "b" or (side == "ab" and weight.shape[0] <= weight.shape[1])
        basis = (a if on_left else b.T) / (a.norm(dim=0) if on_left else b.norm(dim=1))
        torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64), **EXACT)
        lengths = a.norm(dim=0), b.norm(dim=1)
        part = basis @ (basis.T @ weight) if on_left else weight @ basis @ basis.T
        if (split, side) != ("orthonormal", "ab"):  # else directions have a common length in place of their own
            torch.testing.assert_close(a @ b, part, atol=1e-11, rtol=0)
        if split == "sqrt":
            torch.testing.assert_close(*lengths, **EXACT)
        elif (split, side) == ("orthonormal", "ab"):
            mean = (basis.T @ weight if on_left else (weight @ basis).T).norm(dim=1).mean()
            for length in lengths:
                torch.testing.assert_close(length, mean.sqrt().expand(4), **EXACT)
        else:
            unit = lengths[0] if (split, side) == ("orthonormal", "b") else lengths[1]
            torch.testing.assert_close(unit, torch.ones(4, dtype=torch.float64), **EXACT)


def test_a_random_basis_is_uniformly_distributed() -> None:
    """Moments of the Haar distribution: E q = 0, E Q Qᵀ = R/q 1, E q_i⁴ = 3 / (q (q + 2)); each within five errors."""
    q, rank, count = 5, 3, 4000
    weight, found = torch.eye(q, dtype=torch.float64), []
    for number in range(count):
        left, values, right = random_triplets(weight, rank, seeded_generator(0, number, "x"), on_left=number % 2 == 0)
        torch.testing.assert_close(values, torch.ones(rank, dtype=torch.float64), **EXACT)
        found.append(left if number % 2 == 0 else right.T)
    bases = torch.stack(found)
    for values, expected in (
        (bases, torch.zeros(q, rank)),
        (bases @ bases.mT, torch.eye(q) * rank / q),
        (bases**4, torch.full((q, rank), 3 / (q * (q + 2)))),
    ):
        error = values.std(0) / count**0.5
        assert ((values.mean(0) - expected).abs() < 5 * error).all()


def test_a_random_basis_needs_no_factorisation_of_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a weight was factorised")

    monkeypatch.setattr(resampling, "short_side_vectors", refuse)
    monkeypatch.setattr(subspace, "short_side_vectors", refuse)
    monkeypatch.setattr(torch.linalg, "svd", refuse)
    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    rosa.resample(rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=4, basis="random"), keep_base=False), 1)
    with pytest.raises(AssertionError, match="was factorised"):
        adapt("gpt2", rosa.RosaConfig(rank=4))


def test_a_way_of_sampling_singular_directions_does_not_go_with_a_random_basis() -> None:
    with pytest.raises(rosa.AdapterError, match="sample_method=top chooses singular directions: basis=random has none"):
        adapt("gpt2", rosa.RosaConfig(rank=4, basis="random", sample_method="top"))
