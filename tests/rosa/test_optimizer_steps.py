"""What an optimizer's own steps tell: counts and copies that outlive a resample, gradients that no step used."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

import rosa
from rosa.optimizer_steps import CHECKED_STEPS, steps_of
from tests.rosa.cases import adapt, make_model, tokens, train_steps, trained

WARNINGS = "counts steps per group|dropped gradients|averages parameters|never resampled|has not resampled"


class GroupAdam(torch.optim.Optimizer):
    """Adam that counts its steps for a group, from the first step on, as apex's does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                first = state.setdefault("exp_avg", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                second = state.setdefault("exp_avg_sq", torch.zeros_like(p)).lerp_(p.grad.square(), 1e-3)
                scale = (1 - 0.999 ** group["step"]) ** 0.5 / (1 - 0.9 ** group["step"])
                p.sub_(group["lr"] * scale * first / (second.sqrt() + 1e-8))


class Copies(torch.optim.Optimizer):
    """SGD of copies, written into the parameters after each ``every`` steps: a share of the way back, as Lookahead.

    It does not call the step of ``torch.optim.SGD``: once a plain SGD was made, that would call the hooks twice.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], every: int, share: float) -> None:
        super().__init__(parameters, {"lr": 1e-3})
        self.copies, self.every, self.share, self.made = [p.detach().clone() for p in parameters], every, share, 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.made += 1
        for p, slow in zip(self.param_groups[0]["params"], self.copies, strict=True):
            p.data.sub_(1e-3 * p.grad)
            if self.made % self.every == 0:
                p.data.copy_(slow.lerp_(p.data, 1 - self.share))


def found(work: Callable[[], Any]) -> list[str]:
    """The warnings of wrong use that ``work`` gives."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        work()
    return [str(one.message) for one in seen if re.search(WARNINGS, str(one.message))]


def adapted(by_peft: bool, **settings: Any) -> Any:
    """A model of ``rosa.inject`` or of PEFT."""
    if not by_peft:
        return adapt("gpt2", rosa.RosaConfig(rank=3, **settings))
    pytest.importorskip("peft")
    from tests.rosa.peft_models import adapt_by_peft

    return adapt_by_peft("gpt2", **settings)


@pytest.mark.parametrize("optimizer_class", [GroupAdam, torch.optim.AdamW])
@pytest.mark.parametrize("prepare", [lambda one: one, Accelerator(cpu=True).prepare])
def test_a_count_of_a_group_is_said_once(optimizer_class: Any, prepare: Any) -> None:
    """Its bias correction is for many steps, and its moments are those of the first step."""
    model = adapt("gpt2", rosa.RosaConfig(rank=4))
    optimizer = prepare(optimizer_class(trained(model), {"lr": 1e-3} if optimizer_class is GroupAdam else 1e-3))
    resampler = rosa.Resampler(model, optimizer)
    train_steps(model, optimizer, 3)
    seen = [found(lambda epoch=epoch: resampler.after_epoch(epoch, 9)) for epoch in (1, 2)]
    expected = optimizer_class is GroupAdam
    assert [len(one) for one in seen] == [expected, 0] and (not expected or "GroupAdam" in seen[0][0])


@pytest.mark.parametrize(("every", "share"), [(1, 1.0), (5, 0.5)])
@pytest.mark.parametrize("by_peft", [False, True])
@pytest.mark.parametrize("after", ["steps", "resample"])
def test_an_optimizer_that_writes_old_values_back_is_refused(
    every: int, share: float, by_peft: bool, after: str
) -> None:
    """It is seen at the next resample, or after ten steps: a look at each step would wait for the device."""
    model = adapted(by_peft)
    optimizer = Copies(trained(model), every, share)
    train_steps(model, optimizer, every)
    rosa.resample(model, 1, optimizer)
    train_steps(model, optimizer, every)
    with pytest.raises(rosa.AdapterError, match=r"Copies wrote values .* into transformer\.h\.0\.attn\.c_attn\.A"):
        if after == "steps":
            train_steps(model, optimizer, CHECKED_STEPS - every)
        else:
            rosa.resample(model, 2, optimizer)


@pytest.mark.parametrize(
    ("config", "lr"),
    [
        (rosa.RosaConfig(rank=3), 0.1),
        (rosa.ReloraConfig(rank=3, rewarm_steps=0), 0.1),
        (rosa.RosaConfig(rank=3, sample_method="top"), 1e-3),  # the same directions again
        (rosa.RosaConfig(rank=3, sample_method="top", start="zero", adapt="a"), 1e-3),  # the same step from zero again
    ],
)
def test_large_steps_and_values_that_are_loaded_are_no_copies(config: Any, lr: float) -> None:
    model = adapt("gpt2", config)
    optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=lr)
    resampler = rosa.Resampler(model, optimizer)
    for epoch in range(1, 4):
        train_steps(model, optimizer, 1)
        state = copy.deepcopy(model.state_dict())
        resampler.after_epoch(epoch, 9)
        if epoch == 2:
            model.load_state_dict(state)
    train_steps(model, optimizer, 2)


def test_the_curvature_of_lbfgs_begins_again_as_a_whole() -> None:
    """It is in the state of the first parameter, here a bias."""
    model = adapt("gpt2", rosa.RosaConfig(rank=3, bias="adapted"))
    optimizer = torch.optim.LBFGS(sorted(trained(model), key=lambda p: p.dim()), lr=1e-3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    assert any(state.get("old_dirs") for state in optimizer.state.values())
    with pytest.raises(rosa.AdapterError, match="of LBFGS"):
        rosa.resample(model, 1, optimizer, optimizer_state=0.5)
    rosa.resample(model, 1, optimizer)
    assert not optimizer.state
    optimizer.step(closure)


@pytest.mark.parametrize("by_peft", [False, True])
def test_an_average_across_a_resample_is_said_once(by_peft: bool) -> None:
    model = adapted(by_peft)
    average = AveragedModel(model)
    assert not found(lambda: rosa.resample(model, 1))  # of no values yet
    average = AveragedModel(model)
    average.update_parameters(model)
    seen = [found(lambda number=number: rosa.resample(model, number)) for number in (2, 3)]
    assert [len(one) for one in seen] == [1, 0] and "AveragedModel" in seen[0][0]


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("by_peft", [False, True])
@pytest.mark.parametrize(("every", "in_steps"), [(2, False), (8, False), (1, True), (2, True)])
def test_gradients_that_no_step_used_are_said_once(every: int, in_steps: bool, by_peft: bool, to_none: bool) -> None:
    """Four micro-batches for each step: the schedule is told the micro-batches, or the steps, as it should be."""
    model = adapted(by_peft, level="step", every=every)
    optimizer = torch.optim.AdamW(rosa.parameter_groups(model))
    resampler = None if by_peft else rosa.Resampler(model, optimizer)

    def tell(count: int) -> None:
        if resampler is None:
            model.base_model.update_and_allocate(count, optimizer=optimizer)
        else:
            resampler.after_step(count, 99)

    def loop() -> None:
        for batch in range(1, 17):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
            if not in_steps:
                tell(batch)
            if batch % 4 == 0:
                optimizer.step()
                if in_steps:
                    tell(batch // 4)
                optimizer.zero_grad(set_to_none=to_none)

    assert ["dropped gradients" in one for one in found(loop)] == [True] * (not in_steps)


def test_the_hook_is_no_part_of_the_optimizer() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=3))
    optimizer = torch.optim.AdamW(rosa.parameter_groups(model))
    keys = optimizer.state_dict().keys()
    rosa.Resampler(model, optimizer)
    rosa.Resampler(model, Accelerator(cpu=True).prepare(optimizer))
    steps = steps_of(optimizer, rosa.adapter_layers(model).values())
    assert list(optimizer._optimizer_step_post_hooks.values()) == [steps]
    train_steps(model, optimizer, 2)
    assert steps.count == 2 and optimizer.state_dict().keys() == keys
    for one in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert not one._optimizer_step_post_hooks
    assert pickle.loads(pickle.dumps(steps)).count == 0
    compiled = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        compiled()
    rosa.resample(model, 1, optimizer)


def test_a_training_that_nothing_resamples_is_said_once_when_it_is_saved(tmp_path: Path) -> None:
    def of(config: rosa.AdapterConfig, steps: int = 1) -> Any:
        model = adapt("gpt2", config)
        train_steps(model, torch.optim.AdamW(rosa.parameter_groups(model), fused=True), steps)
        return model

    for save in (rosa.save_adapter, rosa.export):
        for config in (rosa.RosaConfig(rank=2), rosa.RosaConfig(rank=2, start="zero"), rosa.ReloraConfig(rank=2)):
            model = of(config)
            assert len(found(lambda: save(model, tmp_path / save.__name__))) == 1  # noqa: B023
            assert not found(lambda: save(model, tmp_path / save.__name__))  # noqa: B023
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path / "save_adapter")
    scheduled, resampled = of(rosa.RosaConfig(rank=2)), of(rosa.RosaConfig(rank=2))
    rosa.Resampler(scheduled, None)  # a checkpoint of the first epoch
    rosa.resample(resampled, 1)
    others = [of(rosa.RosaConfig(rank=2, level="never")), of(rosa.LoraConfig(rank=2)), of(rosa.RosaConfig(rank=2), 0)]
    for one in (loaded, scheduled, resampled, *others):
        assert not found(lambda: rosa.save_adapter(one, tmp_path / "other"))  # noqa: B023


def test_a_peft_training_that_nothing_resamples_is_said_once_when_it_is_saved(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from rosa.integrations.peft import save_as_lora
    from tests.rosa.peft_models import adapt_by_peft, without_decay

    works: list[Callable[[Any], Any]] = [
        lambda model: model.save_pretrained(tmp_path / "rosa"),
        lambda model: save_as_lora(tmp_path / "lora", model),
        lambda model: model.merge_and_unload(),
    ]
    for work in works:
        model = adapt_by_peft("gpt2")
        assert not found(lambda: model.save_pretrained(tmp_path / "untrained"))  # noqa: B023
        optimizer = without_decay(model)
        train_steps(model, optimizer, 1)
        assert len(found(lambda: work(model))) == 1  # noqa: B023
        scheduled = adapt_by_peft("gpt2")
        scheduled.base_model.bind_optimizer(optimizer := without_decay(scheduled))
        train_steps(scheduled, optimizer, 1)
        assert not found(lambda: work(scheduled))  # noqa: B023
    loaded = peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path / "rosa")
    assert not found(loaded.merge_and_unload)


def test_a_call_of_the_other_level_is_said_amid_the_training() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2, level="epoch"))
    resampler = rosa.Resampler(model, None)
    assert len(found(lambda: [resampler.after_step(step, 30) for step in range(1, 30)])) == 1
    model = adapt("gpt2", rosa.RosaConfig(rank=2, level="step", rewarm_steps=1))
    resampler = rosa.Resampler(model, None)
    with resampler.rewarmed(1):
        pass
    with pytest.warns(UserWarning, match="after_epoch does nothing with level='step'"):
        resampler.after_epoch(1, 3)
