"""ROSA under PEFT trains as ``rosa.inject`` does, and the base function stays within reach."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

import rosa
from tests.rosa.cases import FAMILIES, digests, logits, make_model, make_optimizer, tokens, train_steps

pytest.importorskip("peft")

from tests.rosa.peft_models import adapt_by_peft, distance, train, trained, without_decay

SETTINGS: list[dict[str, Any]] = [
    {},
    {"r": 0.29, "bias": "adapted", "factor_split": "left", "seed": 5},
    {"basis": "random", "optimizer_state": "keep"},
    {"adapt": "b", "start": "zero", "factor_split": "orthonormal", "sample_method": "window"},
]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_as_this_library_does(family: str, options: dict[str, Any]) -> None:
    """The same subspaces, moments and function, also after two resamples."""
    ours = {("rank" if key == "r" else key): value for key, value in {"r": 3, "bias": "none", **options}.items()}
    config = rosa.RosaConfig(**ours)
    plain = rosa.inject(make_model(family), config)
    optimizer = without_decay(plain)
    resampler = rosa.Resampler(plain, optimizer, config)
    model = adapt_by_peft(family, **options)
    assert distance(model, make_model(family)) < 1e-5
    for epoch in (1, 2, 3):
        train_steps(plain, optimizer, 2)
        resampler.after_epoch(epoch, 3)
    train(model, 2)
    assert distance(plain, make_model(family)) > 0.05
    assert distance(model, plain) < 2e-5


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_disabled_is_the_base_and_writes_nothing(dtype: torch.dtype, options: dict[str, Any]) -> None:
    model = trained(base=make_model("gpt2", dtype=dtype), **options)
    before, expected = digests(model), logits(model)
    for _ in range(3):
        with model.disable_adapter():
            assert distance(model, make_model("gpt2", dtype=dtype)) < (1e-5 if dtype == torch.float32 else 1e-9)
    assert digests(model) == before
    assert torch.equal(logits(model), expected)


def test_the_record_of_the_base_has_rank_2k_minus_1_times_r_and_is_at_most_full() -> None:
    model = adapt_by_peft(r=2)
    layer = model.get_base_model().transformer.h[0].attn.c_attn.rosa_layers["default"]
    for number in range(1, 10):
        assert layer.left.shape[1] == min((2 * number - 1) * 2, 24)
        train(model, 0, steps=1)
        model.base_model.after_epoch(number)
        assert layer.number == number
    with model.disable_adapter():
        assert distance(model, make_model("gpt2")) < 2e-5


def test_a_resample_keeps_the_function_and_resets_the_optimizer() -> None:
    model = adapt_by_peft(level="step", every=2)
    optimizer = make_optimizer(model)
    model.base_model.bind_optimizer(optimizer)
    train_steps(model, optimizer, 1)
    before = logits(model)
    assert not model.base_model.update_and_allocate(1)
    assert len(optimizer.state) > 0
    assert model.base_model.update_and_allocate(2)
    assert len(optimizer.state) == 0
    assert distance(model, before) < 1e-5
    assert not model.base_model.update_and_allocate(4, total_steps=4), "none after the last step"
    assert not model.base_model.after_epoch(1)


def test_without_an_optimizer_it_says_so_once() -> None:
    model = adapt_by_peft(level="step")
    with pytest.warns(UserWarning, match="bind_optimizer"):
        model.base_model.update_and_allocate(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.base_model.update_and_allocate(2)
    with pytest.raises(rosa.AdapterError, match="holds no parameter of these adapters"):
        model.base_model.bind_optimizer(torch.optim.SGD(make_model("gpt2").parameters(), lr=1.0))


def test_a_level_that_the_call_does_not_serve_is_said_once() -> None:
    model = adapt_by_peft()
    with pytest.warns(UserWarning, match="update_and_allocate does nothing with level='epoch': call .*after_epoch"):
        model.base_model.update_and_allocate(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not model.base_model.update_and_allocate(2)


@pytest.mark.parametrize("by_peft", [False, True])
def test_a_step_counts_once(by_peft: bool) -> None:
    """A loop that accumulates gradients may call after each micro-batch, with the optimizer's steps so far."""
    if by_peft:
        model = adapt_by_peft(level="step", every=2)
        optimizer = without_decay(model)
        calls = [model.base_model.update_and_allocate(step // 3, 9, optimizer) for step in range(3, 18)]
    else:
        model = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=3, level="step", every=2))
        resampler = rosa.Resampler(model, make_optimizer(model))
        calls = [resampler.after_step(step // 3, 9) for step in range(3, 18)]
    assert calls == [False, False, False, True, False, False] * 2 + [False] * 3


def test_a_step_counts_again_after_an_earlier_state_was_loaded() -> None:
    model = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=3, level="step", every=2))
    resampler = rosa.Resampler(model, None)
    resampler.after_step(1, 9)
    states = copy.deepcopy((model.state_dict(), resampler.state_dict()))
    assert resampler.after_step(2, 9)
    model.load_state_dict(states[0])
    resampler.load_state_dict(states[1])
    assert resampler.after_step(2, 9) and resampler.number == 1


def test_the_schedule_is_that_of_the_present_settings() -> None:
    """A loaded adapter whose schedule is set in ``peft_config`` resampled by the one of its file."""
    model = adapt_by_peft()
    settings, optimizer = model.peft_config["default"], without_decay(model)
    settings.level, settings.every = "step", 2
    assert [model.base_model.update_and_allocate(step, 9, optimizer) for step in (1, 2, 3, 4)] == [False, True] * 2
    assert not model.base_model.after_epoch(1, 9)


def test_a_16_bit_base_keeps_its_values_and_no_resample_is_rounded() -> None:
    """The factors stay in float32 beside it, so many resamples follow a float32 model to bfloat16's rounding."""
    base = make_model("gpt2", dtype=torch.bfloat16)
    before = digests(base)
    model = adapt_by_peft(base=base)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    train(model, 3, lr=1e-3)
    now = digests(model)
    for name, digest in before.items():
        prefix, _, key = name.rpartition(".")
        wrapped = f"base_model.model.{prefix}.base_layer.{key}"
        assert now.get(wrapped, now.get(f"base_model.model.{name}")) == digest
    layer = model.get_base_model().transformer.h[0].attn.c_attn.rosa_layers["default"]
    assert layer.rounding is None and layer.number == 3
    wide = copy.deepcopy(model).float()
    assert distance(model, wide) < 0.15  # of logits up to 5 in bfloat16
    assert distance(model.merge_and_unload(), wide) < 0.15


def test_autocast_trains_a_second_adapter_as_the_first() -> None:
    one, two = adapt_by_peft(), adapt_by_peft(adapter="other", r=5)
    from rosa.integrations.peft import RosaConfig

    two.add_adapter("default", RosaConfig(r=3))
    two.set_adapter("default")
    for model in (one, two):
        train(model, 1, autocast=True)
    assert distance(one, two) < 0.1 < distance(one, make_model("gpt2"))


def test_rosas_own_functions_see_the_active_adapter() -> None:
    model = trained(resamples=0, seed=1)
    from rosa.integrations.peft import RosaConfig

    model.add_adapter("second", RosaConfig(r=2))
    assert {layer.rank for layer in rosa.adapter_layers(model).values()} == {3}
    assert len(rosa.adapter_layers(model)) == 8
    assert rosa.parameter_report(model).total == sum(p.numel() for p in make_model("gpt2").parameters())
    groups = rosa.parameter_groups(model, weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]
    before = logits(model)
    rosa.resample(model, 1)
    assert distance(model, before) < 1e-5
    drawn = {name: int(a.number) for name, a in model.get_base_model().transformer.h[1].mlp.c_fc.rosa_layers.items()}
    assert drawn == {"default": 1, "second": 0}


def test_gradients_through_layer_weight_are_those_of_the_forward_pass() -> None:
    model = trained(resamples=1)
    layer = model.get_base_model().transformer.h[0].mlp.c_fc
    pair = layer.rosa_layers["default"]
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    called = torch.autograd.grad(layer(x).square().sum(), [pair.A, pair.B])
    read = torch.autograd.grad((x @ layer.weight + layer.bias).square().sum(), [pair.A, pair.B])
    for one, other in zip(called, read, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        base = make_model("gpt2").transformer.h[0].mlp.c_fc
        torch.testing.assert_close(layer.weight, base.weight, rtol=0, atol=1e-6)


def test_checkpointed_activations_and_hooks() -> None:
    plain, model = adapt_by_peft(), adapt_by_peft()
    model.get_base_model().gradient_checkpointing_enable()
    model.enable_input_require_grads()
    for each in (plain, model):
        each.train()
        each(input_ids=tokens(), labels=tokens()).loss.backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    seen: list[torch.Size] = []
    layer = model.get_base_model().transformer.h[0].mlp.c_fc
    handle = layer.base_layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    logits(model)
    assert len(seen) == 1
    handle.remove()
