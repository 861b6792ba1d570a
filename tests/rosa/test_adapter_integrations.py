"""Training loops of others: the HF Trainer, which resamples by a callback, and accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import rosa
from tests.rosa.cases import adapt, digests, logits, make_model, make_optimizer, tokens, train_steps

EPOCHS, STEPS_PER_EPOCH = 3, 4


class Rows(Dataset[dict[str, Any]]):
    """16 fixed rows of tokens: 4 batches of 4 per epoch."""

    def __len__(self) -> int:
        return 4 * STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = tokens(rows=4 * STEPS_PER_EPOCH)[index]
        return {"input_ids": row, "labels": row}


def adapt_by_peft(config: Any) -> Any:
    import peft

    return peft.get_peft_model(make_model("gpt2"), config)


def make_trainer(config: Any, folder: Path, callbacks: list[Any] | None = None, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    from rosa.integrations.trainer import ResampleCallback

    defaults = dict(
        num_train_epochs=EPOCHS, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, save_strategy="no"
    )
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=0, **{**defaults, **settings}
    )
    model = adapt("gpt2", config) if isinstance(config, rosa.AdapterConfig) else adapt_by_peft(config)
    callbacks = [ResampleCallback(), *(callbacks or [])]
    return Trainer(model, args, train_dataset=Rows(), eval_dataset=Rows(), callbacks=callbacks)


def watcher() -> Any:
    """A callback that notes A of one layer before each step, and the step count of its optimizer state."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.before_step: list[torch.Tensor] = []
            self.after_step: list[torch.Tensor] = []
            self.optimizer_steps: list[int] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.before_step.append(next(iter(rosa.adapter_layers(model).values())).A.detach().clone())

        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
        ) -> None:
            layer = next(iter(rosa.adapter_layers(model).values()))
            self.after_step.append(layer.A.detach().clone())
            self.optimizer_steps.append(int(optimizer.state[layer.A]["step"]))

        def resampled_after(self) -> list[int]:
            """The optimizer steps after which A was written, before the next step began."""
            pairs = zip(self.after_step, self.before_step[1:], strict=False)
            return [step for step, (a, b) in enumerate(pairs, 1) if not torch.equal(a, b)]

    return Watch()


@pytest.mark.parametrize(
    ("settings", "due"),
    [(dict(level="epoch"), [4, 8]), (dict(level="step", every=3), [3, 6, 9]), (dict(level="never"), [])],
)
def test_a_trainer_run_resamples_in_place(settings: dict[str, Any], due: list[int], tmp_path: Path) -> None:
    watch = watcher()
    trainer = make_trainer(rosa.RosaConfig(rank=4, **settings), tmp_path, [watch])
    identity = {name: (id(p), p.data_ptr()) for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert {name: (id(p), p.data_ptr()) for name, p in trainer.model.named_parameters()} == identity
    assert watch.resampled_after() == due
    expected, count = [], 0
    for step in range(1, EPOCHS * STEPS_PER_EPOCH + 1):  # the optimizer state of A is new for each subspace
        count += 1
        expected.append(count)
        count = 0 if step in due else count
    assert watch.optimizer_steps == expected
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == EPOCHS * STEPS_PER_EPOCH
    assert sum(losses[-4:]) < 0.93 * sum(losses[:4])
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)  # one linear schedule


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        (dict(level="epoch"), 4),  # at the end of an epoch, before its resample
        (dict(level="epoch"), 6),  # within one
        (dict(level="step", every=3), 6),
        (dict(level="step", every=3), 7),
        (dict(level="epoch", rewarm_steps=3), 4),  # the first thing is a resample, before any step
        (dict(level="epoch", rewarm_steps=3), 6),  # within the ramp after a resample
        (dict(level="step", every=5, rewarm_steps=3), 7),
    ],
)
@pytest.mark.filterwarnings("error:rewarm_steps")
def test_a_resumed_trainer_run_equals_an_uninterrupted_one(settings: dict[str, Any], stop: int, tmp_path: Path) -> None:
    config = rosa.RosaConfig(rank=4, **settings)
    whole = make_trainer(config, tmp_path, save_strategy="steps", save_steps=stop)
    whole.train()
    resumed = make_trainer(config, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.state.global_step == whole.state.global_step == EPOCHS * STEPS_PER_EPOCH
    torch.testing.assert_close(logits(resumed.model), logits(whole.model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "due", "stop"),
    [
        (dict(level="epoch"), [4, 8], 4),
        (dict(level="epoch"), [4, 8], 6),
        (dict(level="step", every=3), [3, 6, 9], 7),
    ],
)
def test_the_callback_serves_models_of_get_peft_model(
    settings: dict[str, Any], due: list[int], stop: int, tmp_path: Path
) -> None:
    """It resamples when it is due and resets the optimizer, and a resume from the adapter alone goes on the same."""
    pytest.importorskip("peft", reason="peft is not installed")
    from rosa.integrations.peft import RosaConfig

    watch = watcher()
    whole = make_trainer(RosaConfig(r=4, **settings), tmp_path, [watch], save_strategy="steps", save_steps=stop)
    whole.train()
    assert watch.resampled_after() == due
    since = [max((step for step in due if step < now), default=0) for now in range(1, EPOCHS * STEPS_PER_EPOCH + 1)]
    assert watch.optimizer_steps == [now - before for now, before in enumerate(since, 1)]
    checkpoint = tmp_path / f"checkpoint-{stop}"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()
    resumed = make_trainer(RosaConfig(r=4, **settings), tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(logits(resumed.model), logits(whole.model), atol=1e-4, rtol=0)


def test_settings_beside_those_of_get_peft_model_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    from rosa.integrations.peft import RosaConfig
    from rosa.integrations.trainer import ResampleCallback

    trainer = make_trainer(RosaConfig(r=4), tmp_path)
    trainer.pop_callback(ResampleCallback)
    trainer.add_callback(ResampleCallback(rosa.RosaConfig(rank=4)))
    with pytest.raises(rosa.AdapterError, match=r"use ResampleCallback\(\)"):
        trainer.train()


def test_the_trainers_learning_rate_ramps_after_a_resample(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Rates(TrainerCallback):
        used: list[float]

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            self.used.append(optimizer.param_groups[0]["lr"])

    rates = Rates()
    rates.used = []
    settings = dict(lr_scheduler_type="constant")
    make_trainer(rosa.RosaConfig(rank=4, rewarm_steps=1), tmp_path, [rates], **settings).train()
    assert rates.used == [0.01 * (0.5 if step in (4, 8) else 1) for step in range(EPOCHS * STEPS_PER_EPOCH)]


def test_lora_under_the_trainer_is_left_alone(tmp_path: Path) -> None:
    watch = watcher()
    trainer = make_trainer(rosa.LoraConfig(rank=4), tmp_path, [watch])
    trainer.train()
    assert watch.resampled_after() == []


def test_settings_of_another_method_end_a_trainer_run_at_once(tmp_path: Path) -> None:
    from rosa.integrations.trainer import ResampleCallback

    trainer = make_trainer(rosa.RosaConfig(rank=4), tmp_path)
    trainer.pop_callback(ResampleCallback)
    trainer.add_callback(ResampleCallback(rosa.LoraConfig(rank=4)))
    with pytest.raises(rosa.AdapterError, match="those of lora, the model has rosa adapters"):
        trainer.train()


def test_a_trainer_run_without_adapters_ends_at_once(tmp_path: Path) -> None:
    trainer = make_trainer(rosa.RosaConfig(rank=4), tmp_path)
    rosa.unwrap(trainer.model).requires_grad_(True)
    with pytest.raises(rosa.AdapterError, match=r"no adapters to resample: adapt it before"):
        trainer.train()


def accelerated(folder: Path, *, load: bool = False, register: bool = True) -> tuple[Any, rosa.Resampler]:
    """Seven steps that resample after 2, 4 and 6; the state is saved after 3, or loaded there instead."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = adapt("gpt2", rosa.RosaConfig(rank=4, level="step", every=2, rewarm_steps=1))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(rosa.parameter_groups(model), lr=1e-2))
    resampler = rosa.Resampler(model, optimizer)
    if register:
        accelerator.register_for_checkpointing(resampler)
    if load:
        accelerator.load_state(str(folder))
    for step in range(4 if load else 1, 8):
        batch = tokens(seed=step)
        accelerator.backward(model(input_ids=batch, labels=batch).loss)
        with resampler.rewarmed(step):
            optimizer.step()
        optimizer.zero_grad()
        resampler.after_step(step, 8)
        if step == 3:
            accelerator.save_state(str(folder))
    return model, resampler


def test_accelerate_goes_on_from_its_saved_state_to_the_bit(tmp_path: Path) -> None:
    """Also in the ramp of the learning rate; without a registered resampler in the same subspaces."""
    whole, resampler = accelerated(tmp_path / "with")
    resumed, again = accelerated(tmp_path / "with", load=True)
    assert digests(resumed) == digests(whole)
    assert again.state_dict() == resampler.state_dict() == {"number": 3, "step": 7, "resampled_at": 6}
    accelerated(tmp_path / "without", register=False)
    unregistered, own = accelerated(tmp_path / "without", load=True, register=False)
    assert own.number == 3 and digests(unregistered) == digests(whole)


@pytest.mark.parametrize("state", [{}, {"number": 1, "step": 2}, {"number": 1.0, "step": 2, "resampled_at": -1}])
def test_a_resampler_takes_its_own_state_only(state: Any) -> None:
    resampler = rosa.Resampler(adapt("gpt2", rosa.RosaConfig(rank=4)), None)
    with pytest.raises(rosa.AdapterError, match="number, step, resampled_at"):
        resampler.load_state_dict(state)
    assert resampler.number == 0


def test_the_base_stays_within_reach_of_a_model_whose_state_is_loaded(tmp_path: Path) -> None:
    """As the Trainer and accelerate do at a resume: the adapter that is saved afterwards is the right one."""
    model, resumed = (adapt("gpt2", rosa.RosaConfig(rank=2)) for _ in range(2))
    optimizer = make_optimizer(model)
    for number in (1, 2):
        train_steps(model, optimizer)
        rosa.resample(model, number, optimizer)
    resumed.load_state_dict(model.state_dict())
    rosa.resample(resumed, 3)
    with rosa.disabled(resumed):
        torch.testing.assert_close(logits(resumed), logits(make_model("gpt2")), atol=1e-5, rtol=0)
    rosa.save_adapter(resumed, tmp_path)
    loaded = rosa.load_adapter(make_model("gpt2"), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
