"""ROSA under transformers' ``Trainer``: a callback that resamples between epochs or steps.

    model = rosa.inject(model, rosa.RosaConfig(rank=0.05))  # or get_peft_model with rosa.integrations.peft.RosaConfig
    trainer = Trainer(model, args, train_dataset=data, callbacks=[ResampleCallback()])

Parameters are written in place, so the Trainer's optimizer and its schedule need nothing else. The Trainer's own
optimizer decays A and B and knows no rates of LoRA+; give it one of ``rosa.parameter_groups``.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length
from transformers.utils import SAFE_WEIGHTS_NAME

from rosa.checksums import values_checksum
from rosa.errors import AdapterError
from rosa.files import replace_files
from rosa.injection import adapter_layers
from rosa.resampler import Resampler
from rosa.saved_modules import saved_modules
from rosa.schedule import count_resamples, too_short
from rosa.settings import AdapterConfig
from rosa.sharding import is_sharded

FROZEN = "rosa_frozen"  # key of a checkpoint's metadata: the checksum of what it leaves out


class ResampleCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not type-checked here
    """Resample when the adapters' settings say so, and never after the last epoch or step.

    A warning when training begins says if that is never. Epochs of a data set without a length are not counted.

    The new subspace is sampled when the next epoch or step begins, after the Trainer has evaluated and saved. A run
    that continues from any of its checkpoints (``resume_from_checkpoint``) therefore samples the same subspaces.

    A checkpoint of the Trainer holds the adapter alone if the model is one of ``get_peft_model``. After ``rosa.inject``
    it holds what trains or changes (``keep_what_changes``): enough to resume, and for ``load_best_model_at_end``. What
    others load is then written by ``rosa.save_adapter`` or ``rosa.export``; ``trainer.save_model`` raises.

    Args:
        config: the settings with which ``rosa.inject`` adapted the model; None: those that its adapters hold. LoRA has
            no schedule: nothing happens then. A model without adapters, or with those of another method, is an
            ``AdapterError`` when training begins.

    Attributes:
        resampler: the ``rosa.Resampler`` in use; None before training, and for a model of ``get_peft_model``, which
            resamples itself: the callback gives it the step and the epoch.
    """

    def __init__(self, config: AdapterConfig | None = None) -> None:
        self.config = config
        self.resampler: Resampler | None = None
        self._tuner: Any = None  # of ``get_peft_model``
        self._ramp = contextlib.ExitStack()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any | None = None,
        train_dataloader: Any | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None  # the Trainer always gives it
        self.resampler = self._tuner = None  # of an earlier training
        base: Any = getattr(model, "base_model", None)
        if hasattr(base, "bind_optimizer"):
            if self.config is not None:
                raise AdapterError("a model of get_peft_model has its settings itself: use ResampleCallback()")
            base.bind_optimizer(optimizer)
            self._tuner = base
            for name in base.active_adapters:
                _warn_if_never_due(base.peft_config[name], state, train_dataloader)
            return
        if not adapter_layers(model):
            raise AdapterError(
                "this model has no adapters to resample: adapt it before the Trainer is made (rosa.inject, or "
                "get_peft_model with rosa.integrations.peft.RosaConfig)"
            )
        self.resampler = Resampler(model, optimizer, self.config)
        _warn_if_never_due(self.resampler, state, train_dataloader)
        # On a resume, every complete epoch or step had its resample, except the last one.
        resamples = count_resamples(self.resampler, math.ceil(state.epoch or 0), state.global_step)
        number = max(self.resampler.number, resamples)  # checkpoints of earlier versions do not tell
        length = round(state.global_step / state.epoch) if self.resampler.level == "epoch" and state.epoch else 1
        at = resamples * self.resampler.every * length
        self.resampler.load_state_dict({"number": number, "step": state.global_step, "resampled_at": at})
        _check_frozen(model, _weights(args, state))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        complete = state.epoch or 0  # not whole if a run resumes within an epoch
        if not (complete > 0 and complete == int(complete)):
            return
        if self.resampler is not None:
            self.resampler.step = state.global_step
            self.resampler.after_epoch(int(complete), math.ceil(state.num_train_epochs))
        elif self._tuner is not None and "epoch" in self._tuner.levels:
            self._tuner.after_epoch(int(complete), math.ceil(state.num_train_epochs))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:
            return
        if self._tuner is not None and "step" in self._tuner.levels:
            self._tuner.update_and_allocate(state.global_step, state.max_steps)
        elif self.resampler is not None:
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

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        weights = _weights(args, state)
        if self.resampler is not None and args.should_save and not args.fsdp and weights.is_file():
            keep_what_changes(self.resampler.model, weights)


def _weights(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir, f"checkpoint-{state.global_step}", str(SAFE_WEIGHTS_NAME))


def _check_frozen(model: nn.Module, weights: Path) -> None:
    """Warn if the values that a checkpoint leaves out are not those that the model has in their place."""
    if not weights.is_file():
        return  # of the first start, or written otherwise
    with safe_open(weights, framework="pt") as file:
        recorded = (file.metadata() or {}).get(FROZEN)
    if recorded and recorded != _checksum(_frozen(model)):
        warnings.warn(
            f"{weights.parent} was written by a model with other frozen weights, which it leaves out: make the model "
            "as before, and give new weights that do not train (of added tokens, of a head) the same values",
            stacklevel=3,
        )


def _frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    """What neither trains nor resamples nor is the adapter's, by each of its names."""
    kept = {id(p) for layer in adapter_layers(model).values() for p in layer.changing_parameters()}
    kept |= {id(p) for module in saved_modules(model).values() for p in module.parameters()}  # also where frozen since
    named = model.named_parameters(remove_duplicate=False)
    return {name: p for name, p in named if not p.requires_grad and id(p) not in kept}


def _checksum(frozen: Mapping[str, Tensor]) -> str:
    """That of the values; "" where this process does not have them all, and must not ask the others."""
    return "" if any(p.is_meta or is_sharded(p) for p in frozen.values()) else values_checksum(frozen)


def _warn_if_never_due(schedule: Any, state: TrainerState, data: Any) -> None:
    """Warn if the ``level`` and ``every`` of the settings, or of a Resampler, resample nowhere in this training."""
    counts = {"epoch": math.ceil(state.num_train_epochs), "step": state.max_steps}
    if schedule.level == "epoch" and data is not None and not has_length(data):
        why = "the data set has no length, so that its epochs are not counted. Adapt the model with level='step', "
        why += "every=STEPS, or with level='never'"
    elif schedule.level in counts and not count_resamples(schedule, counts["epoch"], counts["step"]):
        why = too_short(schedule, counts[schedule.level])
    else:
        return
    warnings.warn(f"this training never resamples: {why}", stacklevel=3)


def keep_what_changes(model: nn.Module, weights: Path) -> None:
    """Drop from ``weights``, a file of the model's whole state, what neither trains nor resamples nor is the adapter's.
    A checksum of that stays, so that a resume can tell.

    ``model.load_state_dict(..., strict=False)``, which is what the Trainer does on a resume, then restores the model
    from its base. The Trainer names the missing keys in a warning. ``save_pretrained`` writes some models under the
    names that the hub's files have (ViT, Gemma 3), of which that call knows none: the file gets the model's own then.
    """
    frozen = _frozen(model)
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own = {name for name, _ in named}
    with safe_open(weights, framework="pt") as file:
        names, metadata = list(file.keys()), file.metadata()
        if own.issuperset(names):
            tensors = {name: file.get_tensor(name) for name in names if name not in frozen}
        else:
            state = {name: values for name, values in model.state_dict().items() if name not in frozen}
            like: dict[str, Any] = dict(device="cpu", copy=True, memory_format=torch.contiguous_format)
            tensors = {name: values.to(**like) for name, values in state.items()}
    metadata = {**(metadata or {}), FROZEN: _checksum(frozen)}
    replace_files({weights: lambda path: save_file(tensors, path, metadata)})
