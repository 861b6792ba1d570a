"""The optimizer's groups: a rate for B of its own (LoRA+), and one group where all parameters are alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rosa
from tests.conftest import make_config
from tests.rosa.cases import adapt, make_model, train_steps, trained
from utils.errors import UserError
from utils.training.optimizers import build_optimizer, build_scheduler, check_resamples

peft = pytest.importorskip("peft")
LORA_PLUS = ("fnmodel.name=lora", "fnmodel.lora.lr_ratio_b=16", "train.lr=1e-2")
CPU = torch.device("cpu")


def optimizer_of(model: Any, *overrides: str) -> Any:
    return build_optimizer(make_config(*overrides).train, model, CPU)


@pytest.mark.parametrize("method", [rosa.RosaConfig(rank=2, decay=True), rosa.LoraConfig(rank=2, bias="adapted"), None])
def test_parameters_that_are_alike_are_one_group_in_the_models_order(method: Any) -> None:
    """As in checkpoints of earlier versions, which hold the state by position."""
    model = make_model("gpt2") if method is None else adapt("gpt2", method)
    for overrides in ((), ("train.optimizer=sgd",)):
        (group,) = optimizer_of(model, *overrides).param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in trained(model)]
        assert (group["lr"], group["weight_decay"]) == (1e-3, 0.0 if overrides else 0.01)


def test_only_b_has_the_rate_of_b() -> None:
    model = adapt("gpt2", rosa.LoraConfig(rank=2, lr_ratio_b=16.0, bias="adapted"))
    first, second = optimizer_of(model, *LORA_PLUS, "train.weight_decay=0.3").param_groups
    assert {id(p) for p in second["params"]} == {id(layer.B) for layer in rosa.adapter_layers(model).values()}
    assert len(first["params"]) + len(second["params"]) == len(trained(model))
    assert [(group["lr"], group["weight_decay"]) for group in (first, second)] == [(1e-2, 0.3), (0.16, 0.3)]


def test_the_schedule_multiplies_each_groups_peak() -> None:
    optimizer = optimizer_of(adapt("llama", rosa.LoraConfig(rank=2, lr_ratio_b=16.0)), *LORA_PLUS)
    scheduler = build_scheduler(make_config(*LORA_PLUS).train, optimizer, 2, 10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert [a for a, _ in rates] == pytest.approx([1e-2 * f for f in (0, 0.5, *(1 - i / 8 for i in range(8)))])
    assert [b for _, b in rates] == pytest.approx([16 * a for a, _ in rates])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora_plus_takes_pefts_steps(family: str) -> None:
    from peft.optimizers import create_loraplus_optimizer

    from tests.rosa.test_adapter_oracles import peft_layers, peft_model

    ours = adapt(family, rosa.LoraConfig(rank=4, lr_ratio_b=16.0), torch.float64)
    theirs = peft_model(family, torch.float64, r=4, lora_alpha=4)
    layers, others = rosa.adapter_layers(ours), peft_layers(theirs)
    with torch.no_grad():
        for name, layer in layers.items():
            others[name].lora_A["default"].weight.copy_(layer.A.T)
    their_optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.01
    )
    losses = train_steps(ours, optimizer_of(ours, *LORA_PLUS), 4)
    assert losses == pytest.approx(train_steps(theirs, their_optimizer, 4), rel=1e-9)
    assert losses[-1] < losses[0]
    for name, layer in layers.items():
        torch.testing.assert_close(layer.A.T, others[name].lora_A["default"].weight, atol=1e-8, rtol=0)
        torch.testing.assert_close(layer.B.T, others[name].lora_B["default"].weight, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [(("fnmodel.relora.every=2", "fnmodel.relora.rewarm_steps=10"), 10), (("fnmodel.relora.level=step",), 1)],
)
def test_a_ramp_that_never_ends_is_refused(train: Any, overrides: tuple[str, ...], steps: int) -> None:
    """The fixture's epochs have five steps."""
    with pytest.raises(UserError, match=rf"fnmodel\.relora\.rewarm_steps=10 is not shorter than the {steps} steps"):
        train("fnmodel.name=relora", *overrides)
    never = make_config("fnmodel.name=relora", "fnmodel.relora.level=never").adapter
    for adapter in (never, make_config().adapter, make_config("fnmodel.name=none").adapter):
        check_resamples(adapter, 9, 1)
    relora = make_config("fnmodel.name=relora").adapter
    check_resamples(relora, 1, 5)  # a run without a restart


def test_sgd_with_momentum_goes_on_after_a_resample(train: Any) -> None:
    """The momenta of A and B are cleared, those of the biases stay."""
    run = train("train.optimizer=sgd", "train.momentum=0.9", "train.epochs=2", "fnmodel.params.bias=adapted")
    assert run.record()["status"] == "finished" and run.record()["timings"]["resamples"] == 1


def test_a_run_with_two_groups_resumes(train: Any, tmp_path: Any) -> None:
    from tests.training.reading import points, stopped_at, weights

    whole = train(*LORA_PLUS, f"output.path={tmp_path / 'whole'}")
    with stopped_at(7):
        train(*LORA_PLUS)
    halves = train(*LORA_PLUS)
    first, second = weights(whole.last), weights(halves.last)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert points(whole, "train", "step", "lr") == points(halves, "train", "step", "lr")
    assert max(rate for (rate,) in points(whole, "train", "lr")) <= 1e-2  # of A, not of B
