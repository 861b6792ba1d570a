"""ROSA under transformers' ``Trainer``: a callback that resamples between epochs or steps.

    config = rosa.RosaConfig(rank=0.05)
    trainer = Trainer(rosa.inject(model, config), args, train_dataset=data, callbacks=[ResampleCallback(config)])

Parameters are written in place, so the Trainer's optimizer, its schedule and its checkpoints need nothing else. The
Trainer's own optimizer decays A and B and knows no rates of LoRA+; give it one of ``rosa.parameter_groups``.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rosa.config import AdapterConfig
from rosa.resampler import Resampler


class ResampleCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Resample when ``config`` says so, and never after the last epoch or step.

    The new subspace is sampled when the next epoch or step begins, after the Trainer has evaluated and saved. A run
    that continues from any of its checkpoints (``resume_from_checkpoint``) therefore samples the same subspaces.

    Args:
        config: the settings with which the model was adapted. LoRA has no schedule: nothing happens then. Settings of
            another method than the model's are an ``AdapterError`` when training begins.

    Attributes:
        resampler: the ``rosa.Resampler`` in use, None before training.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self.resampler: Resampler | None = None
        self._ramp = contextlib.ExitStack()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None  # the Trainer always gives it
        self.resampler = Resampler(model, optimizer, self.config)
        # On a resume, every complete epoch or step had its resample, except the last one.
        begun = {"step": state.global_step, "epoch": math.ceil(state.epoch or 0)}.get(self.resampler.level, 0)
        self.resampler.number = max(begun - 1, 0) // self.resampler.every
        length = round(state.global_step / state.epoch) if self.resampler.level == "epoch" and state.epoch else 1
        self.resampler.resampled_at = self.resampler.number * self.resampler.every * length

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        complete = state.epoch or 0  # not whole if a run resumes within an epoch
        if self.resampler is not None and complete > 0 and complete == int(complete):
            self.resampler.step = state.global_step
            self.resampler.after_epoch(int(complete), math.ceil(state.num_train_epochs))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.resampler is not None and state.global_step > 0:
            self.resampler.after_step(state.global_step, state.max_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.resampler is not None:
            self._ramp.enter_context(self.resampler.rewarmed(state.global_step + 1))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ramp.close()
