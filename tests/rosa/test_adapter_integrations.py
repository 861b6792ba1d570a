"""The optional bridges: HF Trainer with resampling, and PEFT's LoRA format with PEFT itself as the reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

import rosa
from tests.rosa.cases import FAMILIES, adapt, logits, make_model, make_optimizer, tokens, train_steps, trained

EPOCHS, STEPS_PER_EPOCH = 3, 4


class Rows(Dataset[dict[str, Any]]):
    """16 fixed rows of tokens: 4 batches of 4 an epoch."""

    def __len__(self) -> int:
        return 4 * STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = tokens(rows=4 * STEPS_PER_EPOCH)[index]
        return {"input_ids": row, "labels": row}


def make_trainer(config: rosa.AdapterConfig, folder: Path, callbacks: list[Any] | None = None, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    from rosa.integrations.trainer import ResampleCallback

    defaults = dict(
        num_train_epochs=EPOCHS, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=1, save_strategy="no"
    )
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=0, **{**defaults, **settings}
    )
    model = adapt("gpt2", config)
    callbacks = [ResampleCallback(config), *(callbacks or [])]
    return Trainer(model, args, train_dataset=Rows(), callbacks=callbacks)


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
            """The optimizer steps between whose end and the next step's beginning A was written."""
            pairs = zip(self.after_step, self.before_step[1:], strict=False)
            return [step for step, (a, b) in enumerate(pairs, 1) if not torch.equal(a, b)]

    return Watch()


@pytest.mark.parametrize(
    ("settings", "due"),
    [(dict(level="epoch"), [4, 8]), (dict(level="step", every=3), [3, 6, 9]), (dict(level="never"), [])],
)
def test_a_trainer_run_resamples_in_place(settings: dict[str, Any], due: list[int], tmp_path: Path) -> None:
    config = rosa.RosaConfig(rank=4, **settings)
    watch = watcher()
    trainer = make_trainer(config, tmp_path, [watch])
    identity = {name: (id(p), p.data_ptr()) for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert {name: (id(p), p.data_ptr()) for name, p in trainer.model.named_parameters()} == identity
    assert watch.resampled_after() == due
    expected, count = [], 0
    for step in range(1, EPOCHS * STEPS_PER_EPOCH + 1):  # the state of A begins anew with each subspace
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
        (dict(level="epoch"), 4),  # at the end of an epoch, its resample still to come
        (dict(level="epoch"), 6),  # within one
        (dict(level="step", every=3), 6),
        (dict(level="step", every=3), 7),
    ],
)
def test_a_resumed_trainer_run_equals_an_uninterrupted_one(settings: dict[str, Any], stop: int, tmp_path: Path) -> None:
    config = rosa.RosaConfig(rank=4, **settings)
    saving = dict(save_strategy="steps", save_steps=stop)
    whole = make_trainer(config, tmp_path, **saving)
    whole.train()
    resumed = make_trainer(config, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.state.global_step == whole.state.global_step == EPOCHS * STEPS_PER_EPOCH
    torch.testing.assert_close(logits(resumed.model), logits(whole.model), atol=1e-5, rtol=0)


def test_lora_under_the_trainer_is_left_alone(tmp_path: Path) -> None:
    watch = watcher()
    trainer = make_trainer(rosa.LoraConfig(rank=4), tmp_path, [watch])
    trainer.train()
    assert watch.resampled_after() == []


peft = pytest.importorskip("peft")


def change_model(config: rosa.AdapterConfig, family: str, resamples: int, **changes: Any) -> Any:
    model = adapt(family, config, **changes)
    optimizer = make_optimizer(model)
    train_steps(model, optimizer)
    for number in range(1, resamples + 1):
        rosa.resample(model, number, optimizer)
        train_steps(model, optimizer)
    return model


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("config", "resamples", "bound"),
    [
        (rosa.RosaConfig(rank=1), 0, 2),  # K = 1 factorisation: 2 R K
        (rosa.RosaConfig(rank=1, bias="none"), 2, 6),
        (rosa.RosaConfig(rank=2, factor_split="left"), 1, 8),
        (rosa.LoraConfig(rank=3, alpha=12), 0, 3),
        (rosa.LoraConfig(rank=2, bias="adapted"), 0, 2),
    ],
)
def test_peft_reads_the_change_as_lora(
    config: rosa.AdapterConfig, resamples: int, bound: int, family: str, merged: bool, tmp_path: Path
) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = change_model(config, family, resamples)
    expected = logits(model)
    base = make_model(family)
    assert (logits(base) - expected).abs().max() > 0.1
    if merged:
        rosa.merge(model)
    assert to_peft_lora(model, base if merged else base.state_dict(), tmp_path) == bound
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=0)
    settings = loaded.peft_config["default"]
    assert settings.task_type == "CAUSAL_LM" and settings.r == bound
    assert settings.lora_bias == (config.trains_bias and family == "gpt2")
    plain = loaded.merge_and_unload()
    torch.testing.assert_close(logits(plain), expected, atol=2e-5, rtol=0)


def test_ranks_that_differ_between_layers(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = change_model(rosa.LoraConfig(rank=0.25), "llama", 0)
    assert {layer.rank for layer in rosa.adapter_layers(model).values()} == {3, 6}
    assert to_peft_lora(model, make_model("llama"), tmp_path) == 6
    loaded = peft.PeftModel.from_pretrained(make_model("llama"), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
    shapes = {name: p.shape[0] for name, p in loaded.named_parameters() if "lora_A" in name and "layers.0" in name}
    assert sorted(shapes.values()) == [3, 3, 6, 6, 6, 6, 6]  # grouped keys and values are smaller


def test_an_untrained_adapter_becomes_one_of_rank_one(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = adapt("gpt2", rosa.RosaConfig(rank=8))
    assert to_peft_lora(model, make_model("gpt2"), tmp_path) == 1  # rounding is no change
    for number in range(1, 21):
        rosa.resample(model, number)
    assert to_peft_lora(model, make_model("gpt2"), tmp_path) == 1
    assert trained(model)


def test_a_change_that_fills_the_weights_is_refused(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = change_model(rosa.RosaConfig(rank=4), "gpt2", 2)  # up to 24 = q
    with pytest.raises(rosa.AdapterError, match=r"rosa\.export"):
        to_peft_lora(model, make_model("gpt2"), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    from rosa.integrations.peft import to_peft_lora

    model = change_model(rosa.RosaConfig(rank=1), "gpt2", 0)
    folder = tmp_path / "adapter"
    with pytest.raises(rosa.AdapterError, match=r"base has no transformer\.h\.0"):
        to_peft_lora(model, make_model("llama"), folder)
    with pytest.raises(rosa.AdapterError, match=r"c_attn\.weight is \(32, 96\), the adapted one \(24, 72\)"):
        to_peft_lora(model, make_model("gpt2", n_embd=32), folder)
    with pytest.raises(rosa.AdapterError, match="has adapters itself"):
        to_peft_lora(model, model, folder)
    with pytest.raises(rosa.AdapterError, match="no adapters to convert"):
        to_peft_lora(make_model("gpt2"), make_model("gpt2"), folder)
    with pytest.raises(rosa.AdapterError, match=r"rosa\.export"):  # other weights: the difference has full rank
        to_peft_lora(model, make_model("gpt2", seed=1), folder)
    assert not folder.exists()


def test_without_peft_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rosa.integrations.peft import to_peft_lora

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(rosa.AdapterError, match="pip install peft"):
        to_peft_lora(adapt("gpt2", rosa.RosaConfig(rank=1)), make_model("gpt2"), tmp_path)


def test_the_adapter_file_has_pefts_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from rosa.integrations.peft import to_peft_lora

    model = change_model(rosa.LoraConfig(rank=2), "llama", 0)
    to_peft_lora(model, make_model("llama"), tmp_path)
    peft.get_peft_model(make_model("llama"), peft.LoraConfig(r=2, target_modules="all-linear")).save_pretrained(
        tmp_path / "peft"
    )
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "peft"))
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
