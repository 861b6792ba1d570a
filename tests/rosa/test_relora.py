"""ReLoRA: LoRA between restarts; at a restart the pair is merged, drawn again, and most moments become zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rosa
from tests.rosa.cases import FAMILIES, adapt, digests, logits, make_model, make_optimizer, train_steps, trained
from tests.rosa.test_adapter_oracles import peft_layers, peft_model

SCALE = 1.5  # alpha / R


def settings(**changes: Any) -> rosa.ReloraConfig:
    return rosa.ReloraConfig(**{"rank": 4, "alpha": 6.0, "level": "step", "every": 4, "rewarm_steps": 2, **changes})


def pruned(state: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Both moments, zero where the first ones are the smallest ``share``, by sorting."""
    dropped = state["exp_avg"].abs().flatten().argsort()[: round(share * state["exp_avg"].numel())]
    found = {key: state[key].flatten().clone() for key in ("exp_avg", "exp_avg_sq")}
    for values in found.values():
        values[dropped] = 0
    return {key: values.view_as(state[key]) for key, values in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_restarts_are_those_of_a_peft_lora_merged_by_hand(family: str) -> None:
    """Twelve steps with two restarts, on PEFT's LoRA, whose optimizer, weights and rates are changed by hand."""
    ours = adapt(family, settings(pruned=0.9), torch.float64)
    theirs = peft_model(family, torch.float64, r=4, lora_alpha=6)
    layers, others = rosa.adapter_layers(ours), peft_layers(theirs)
    optimizer, their_optimizer = make_optimizer(ours), make_optimizer(theirs)
    resampler = rosa.Resampler(ours, optimizer, settings(pruned=0.9))
    firsts: list[Tensor] = []

    def draw() -> None:
        with torch.no_grad():
            for name, other in others.items():
                assert layers[name].A.any() and not layers[name].B.any()
                other.lora_A["default"].weight.copy_(layers[name].A.T)
        firsts.append(next(iter(layers.values())).A.detach().clone())

    draw()
    for step in range(1, 13):
        k = (step - 1) % 4 + 1  # the step since the last restart
        for group in their_optimizer.param_groups:
            group["lr"] = 1e-2 * (min(1, k / 3) if step > 4 else 1)
        with resampler.rewarmed(step):
            losses = train_steps(ours, optimizer, 1)
        assert losses == pytest.approx(train_steps(theirs, their_optimizer, 1), rel=1e-9)
        before = logits(ours)
        if not resampler.after_step(step, 12):
            continue
        torch.testing.assert_close(logits(ours), before, atol=1e-10, rtol=0)
        with torch.no_grad():
            for other in others.values():
                a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
                delta = SCALE * (b @ a)
                other.base_layer.weight.add_(delta.T if family == "gpt2" else delta)
                b.zero_()
                for parameter in (a, b):
                    state = their_optimizer.state[parameter]
                    assert state["step"] == step
                    state.update(pruned(state, 0.9))
        draw()
    assert resampler.number == 2 and len({float(a[0, 0]) for a in firsts}) == 3  # another A each time
    for name, layer in layers.items():
        weight = others[name].base_layer.weight
        torch.testing.assert_close(layer.base.weight, weight, atol=1e-9, rtol=0)
        torch.testing.assert_close(layer.A.T, others[name].lora_A["default"].weight, atol=1e-9, rtol=0)
        torch.testing.assert_close(layer.B.T, others[name].lora_B["default"].weight, atol=1e-9, rtol=0)


def test_before_the_first_restart_it_is_lora_to_the_bit() -> None:
    models = [adapt("gpt2", config) for config in (settings(), rosa.LoraConfig(rank=4, alpha=6.0))]
    assert torch.equal(logits(models[0]), logits(models[1]))
    for model in models:
        train_steps(model, make_optimizer(model))
    one, other = digests(models[0]), digests(models[1])
    assert {name: value for name, value in one.items() if not name.endswith(".number")} == other


@pytest.mark.parametrize(("share", "kept"), [(0.0, 96), (0.9, 10), (0.99, 1), (1.0, 0)])
def test_the_share_of_moments_that_a_restart_keeps(share: float, kept: int) -> None:
    """The largest ones; k_proj of this Llama has 24 x 4 numbers in A."""
    model = adapt("llama", settings(pruned=share, bias="none"))
    optimizer = make_optimizer(model)
    train_steps(model, optimizer)
    a = next(layer.A for name, layer in rosa.adapter_layers(model).items() if name.endswith("k_proj"))
    before = {key: values.clone() for key, values in optimizer.state[a].items()}
    rosa.resample(model, 1, optimizer, optimizer_state=settings(pruned=share).optimizer_state)
    for key, values in pruned(before, share).items():
        assert int(before[key].count_nonzero()) == 96 and int(values.count_nonzero()) == kept
        assert torch.equal(optimizer.state[a][key], values)
    assert optimizer.state[a]["step"] == 3


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    model = adapt("llama", settings())
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=f"optimizer_state={share} is not one of .* a share"):
        rosa.resample(model, 1, make_optimizer(model), optimizer_state=share)
    assert digests(model) == before
    with pytest.raises(rosa.AdapterError, match=f"pruned={share}"):
        rosa.inject(make_model("llama"), settings(pruned=share))


def test_a_change_of_more_than_its_rank_is_saved_and_exported(tmp_path: Path) -> None:
    model = adapt("llama", settings(rank=1, alpha=3.0), torch.float64)
    start = {name: layer.weight.detach().clone() for name, layer in rosa.adapter_layers(model).items()}
    optimizer = make_optimizer(model)
    for number in (1, 2, 3):
        train_steps(model, optimizer)
        rosa.resample(model, number, optimizer)
    train_steps(model, optimizer)
    for name, layer in rosa.adapter_layers(model).items():
        change = layer.weight.detach() - start[name]
        assert int((torch.linalg.svdvals(change) > 1e-9).sum()) == 4, name
    rosa.save_adapter(model, tmp_path / "adapter", exact=True)
    loaded = rosa.load_adapter(make_model("llama", dtype=torch.float64), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    assert len(trained(loaded)) == len(trained(model))
