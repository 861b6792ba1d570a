"""What ROSA's options ask of an optimizer: its state at a resample, weight decay, and the ramp of the learning rate."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from accelerate import Accelerator
from transformers.optimization import Adafactor

import rosa
from tests.rosa.cases import adapt, make_model, make_optimizer, train_steps, trained


def test_pruning_leaves_the_steps_and_what_is_not_sampled() -> None:
    config = rosa.ReloraConfig(rank=4, pruned=1.0, bias="adapted")
    model = adapt("gpt2", config)
    optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=1e-2, amsgrad=True)
    train_steps(model, optimizer)
    pairs = {id(p) for layer in rosa.adapter_layers(model).values() for p in (layer.A, layer.B)}
    before = {p: {name: v.clone() for name, v in optimizer.state[p].items()} for p in trained(model)}
    assert rosa.Resampler(model, optimizer, config).after_epoch(1, 2) and len(before) > len(pairs)
    for parameter, old in before.items():
        for name, values in optimizer.state[parameter].items():
            if id(parameter) not in pairs or name == "step":
                assert torch.equal(values, old[name])
            else:
                assert old[name].any() and not values.any()


@pytest.mark.parametrize("fused", [True, False])
def test_the_momentum_of_sgd_begins_again(fused: bool) -> None:
    """Beside that of biases, which goes on: PyTorch's fused SGD takes no group in which only some have a momentum."""
    model = adapt("gpt2", rosa.RosaConfig(rank=4, bias="adapted"))
    optimizer = torch.optim.SGD(trained(model), lr=1e-2, momentum=0.9, fused=fused)
    train_steps(model, optimizer)
    rosa.resample(model, 1, optimizer)
    pair = next(iter(rosa.adapter_layers(model).values())).A
    before = pair.detach().clone()
    train_steps(model, optimizer, steps=1)
    assert pair.grad is not None
    torch.testing.assert_close(pair.detach(), before - 1e-2 * pair.grad)  # as the first step of all


def test_the_state_of_rmsprop_begins_again_as_a_whole() -> None:
    """Its momentum alone was kept, as SGD's is, and its next step found no square_avg."""
    model = adapt("gpt2", rosa.RosaConfig(rank=4))
    optimizer = torch.optim.RMSprop(rosa.parameter_groups(model), lr=1e-3, momentum=0.9)
    train_steps(model, optimizer)
    rosa.resample(model, 1, optimizer)
    train_steps(model, optimizer, steps=1)
    pair = next(iter(rosa.adapter_layers(model).values())).A
    assert int(optimizer.state[pair]["step"]) == 1


def test_moments_that_are_not_of_each_element_are_refused_before_anything_is_written() -> None:
    """As Adafactor's factors, or codes of 8 bits, whose zero is another number."""
    model = adapt("gpt2", rosa.RosaConfig(rank=4))
    layer = next(iter(rosa.adapter_layers(model).values()))
    factored = torch.optim.Adafactor(trained(model), lr=1e-3)
    train_steps(model, factored)
    coded = torch.optim.SGD(trained(model), lr=1e-3)
    coded.state[layer.A]["state1"] = torch.zeros(layer.A.shape, dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for optimizer, name in ((factored, "Adafactor"), (coded, "SGD")):
        with pytest.raises(rosa.AdapterError, match=f"cannot change the state '.*' of {name}.*optimizer_state=reset"):
            rosa.resample(model, 1, optimizer, optimizer_state=0.99)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    for allowed in ("keep", "reset"):
        rosa.resample(model, 1, factored, optimizer_state=allowed)
    assert not factored.state.get(layer.A)
    with pytest.raises(rosa.AdapterError, match="optimizer_state=zero is not one of reset, keep"):
        rosa.resample(model, 2, optimizer_state="zero")


def test_steps_after_zero_moments_have_no_bias_correction() -> None:
    """Adam's own formula: after many steps the t-th one since the resample is lr (1 − β₁ᵗ) / √(1 − β₂ᵗ) long."""
    model = rosa.inject(make_model("gpt2"), rosa.ReloraConfig(rank=4, pruned=1.0))
    layer = next(iter(rosa.adapter_layers(model).values()))
    optimizer = torch.optim.Adam([layer.A], lr=1e-3)
    layer.A.grad = torch.randn(layer.A.shape)
    optimizer.step()
    optimizer.state[layer.A]["step"].fill_(10**6)
    rosa.resample(model, 1, optimizer, optimizer_state=1.0)
    assert optimizer.state[layer.A]["step"] == 10**6
    gradient = torch.randn(layer.A.shape).sign()
    for t in (1, 2, 3):
        before, layer.A.grad = layer.A.detach().clone(), gradient.clone()
        optimizer.step()
        length = 1e-3 * (1 - 0.9**t) / (1 - 0.999**t) ** 0.5
        torch.testing.assert_close(layer.A.detach() - before, -length * gradient, rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "decays"),
    [
        (rosa.RosaConfig(rank=4), False),
        (rosa.RosaConfig(rank=4, adapt="b", basis="random"), False),
        (rosa.RosaConfig(rank=4, decay=True), True),
        (rosa.RosaConfig(rank=4, start="zero"), True),
        (rosa.LoraConfig(rank=4, bias="adapted"), True),
    ],
)
def test_weight_decay_leaves_pairs_that_hold_a_part_of_the_weight(config: rosa.AdapterConfig, decays: bool) -> None:
    model = adapt("gpt2", config)
    groups = rosa.parameter_groups(model, weight_decay=0.5)
    assert len(groups) == 1 + (not decays) and len(rosa.parameter_groups(model, weight_decay=0.0)) == 1
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in trained(model)}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained(model):
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5).step()
    for name, parameter in model.named_parameters():
        if name in before:
            is_exempt = name.endswith((".A", ".B")) and not decays
            torch.testing.assert_close(parameter.detach(), before[name] * (1 if is_exempt else 0.95))


def test_the_learning_rate_ramps_after_each_resample() -> None:
    config = rosa.RosaConfig(rank=2, level="step", every=4, rewarm_steps=3, target_modules=["c_fc"])
    model = adapt("gpt2", config)
    optimizer = make_optimizer(model, lr=1.0)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5})
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)
    optimizer.zero_grad()
    resampler, used = rosa.Resampler(model, optimizer, config), []
    for step in range(1, 11):
        with resampler.rewarmed(step):
            used.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups] == [
            1 - step / 20, 0.5 * (1 - step / 20),
        ]  # fmt: skip
        resampler.after_step(step, 10)
    factors = [1, 1, 1, 1, 1 / 4, 2 / 4, 3 / 4, 1, 1 / 4, 2 / 4]
    expected = [[f * (1 - i / 20), f * 0.5 * (1 - i / 20)] for i, f in enumerate(factors)]
    torch.testing.assert_close(torch.tensor(used), torch.tensor(expected))
    without = rosa.Resampler(model, optimizer, dataclasses.replace(config, rewarm_steps=0))
    without.after_step(4, 10)
    assert without.rate_factor(5) == 1


def test_the_state_of_an_inner_optimizer_begins_again() -> None:
    """ZeroRedundancyOptimizer, and wrappers as of SAM, have the parameters and leave the moments to another one."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure: None = None) -> None:  # type: ignore[override]
            self.inner.step()

    for config, prepare in itertools.product(
        (rosa.RosaConfig(rank=4), rosa.ReloraConfig(rank=4, pruned=1.0)),
        (lambda one: one, Accelerator(cpu=True).prepare),
    ):
        model = adapt("gpt2", config)
        inner = make_optimizer(model)
        optimizer = prepare(Wrapper(inner))
        train_steps(model, optimizer)
        pair = next(iter(rosa.adapter_layers(model).values())).A
        assert inner.state[pair]["exp_avg"].any()
        assert rosa.Resampler(model, optimizer, config).after_epoch(1, 2)
        state = inner.state[pair]
        assert not state or not state["exp_avg"].any()


def test_adafactor_finds_its_own_rate() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    optimizer = Adafactor(rosa.parameter_groups(model))
    resampler = rosa.Resampler(model, optimizer)
    train_steps(model, optimizer)
    assert resampler.after_epoch(1, 2)
    pair = next(iter(rosa.adapter_layers(model).values())).A
    assert not any(torch.is_tensor(v) and v.any() for k, v in optimizer.state[pair].items() if k.startswith("exp_avg"))
