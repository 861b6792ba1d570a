"""ROSA under transformers' ``Trainer``: a callback that resamples at the ends of epochs or steps.

    config = rosa.RosaConfig(rank=0.05)
    trainer = Trainer(rosa.inject(model, config), args, train_dataset=data, callbacks=[ResampleCallback(config)])

Parameters are written in place, so the Trainer's optimizer, its schedule and its checkpoints need nothing else.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rosa.config import AdapterConfig
from rosa.schedule import Resampler


class ResampleCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Resample when ``config`` says so, and never after the last epoch or step.

    A run that continues from a Trainer checkpoint (``resume_from_checkpoint``) draws on with the number where it
    stopped. The Trainer evaluates and saves after this callback; a resample does not change the function, so
    the scores are those of the trained weights.

    Args:
        config: the settings that the model was adapted with. LoRA has no schedule: nothing happens then.

    Attributes:
        resampler: the ``rosa.Resampler`` at work, None before training.
    """

    def __init__(self, config: AdapterConfig) -> None:
        self.config = config
        self.resampler: Resampler | None = None

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
        done = {"step": state.global_step, "epoch": _whole_epochs(state)}.get(self.resampler.level, 0)
        self.resampler.number = done // self.resampler.every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.resampler is not None:
            self.resampler.after_step(state.global_step, state.max_steps)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        whole = state.epoch is not None and abs(state.epoch - round(state.epoch)) < 1e-6
        if self.resampler is not None and whole:  # an epoch that was cut short by max_steps is the last
            self.resampler.after_epoch(_whole_epochs(state), math.ceil(state.num_train_epochs))


def _whole_epochs(state: TrainerState) -> int:
    """How many epochs are complete; ``state.epoch`` is a sum of fractions of an epoch."""
    return math.floor((state.epoch or 0.0) + 1e-6)
