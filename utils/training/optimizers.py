"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

import rosa
from rosa.schedule import count_resamples
from rosa.sharding import is_sharded
from utils.config.settings import Config
from utils.config.train import DEFAULT_DECAY, OPTIMIZER_PARAMETERS, TrainConfig
from utils.errors import UnfitSettings
from utils.log import log

DEFAULT_WARMUP = 500
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup", "none": "constant"}


def build_optimizer(train: TrainConfig, model: nn.Module, device: torch.device) -> Any:
    """The optimizer of the parameters that train, as ``train`` describes it.

    Where a key is null, PyTorch's default is used. An adapter may ask for other settings of its own parameters
    (``rosa.parameter_groups``).
    """
    options = {
        name: getattr(train, name) for name in OPTIMIZER_PARAMETERS[train.optimizer] if getattr(train, name) is not None
    }
    if "betas" in options:
        options["betas"] = tuple(options["betas"])
    options.setdefault("weight_decay", DEFAULT_DECAY[train.optimizer])
    groups = rosa.parameter_groups(model, lr=train.lr, **options)
    if train.weight_decay and not any(group.get("weight_decay", train.weight_decay) for group in groups):
        log.warning("train.weight_decay decays nothing: all that trains is A and B of ROSA (fnmodel.rosa.decay)")
    fused = device.type in ("cuda", "cpu")  # one kernel for all parameters
    if train.optimizer == "sgd" and any(is_sharded(parameter) for group in groups for parameter in group["params"]):
        fused = False  # PyTorch has no fused SGD for sharded parameters
    return OPTIMIZERS[train.optimizer](groups, lr=train.lr, fused=fused, **options)


def step_counts(config: Config, samples: int) -> tuple[int, int]:
    """The optimizer steps of a run on ``samples``, and those of its warm-up.

    Raises:
        UserError: the warm-up, or the ramp after a resample, never ends.
    """
    if samples < config.train.batch_size:
        log.warning("train.batch_size=%d: an epoch is one batch of %d samples", config.train.batch_size, samples)
    steps_per_epoch = math.ceil(samples / config.train.batch_size)
    total_steps = steps_per_epoch * config.train.epochs
    check_resamples(config.adapter, config.train.epochs, steps_per_epoch)
    warmup = warmup_steps(config.train, total_steps)
    if config.train.warmup_steps is None and 2 * warmup > total_steps:
        log.warning(
            "the warm-up of %d steps is more than half of this run of %d (train.warmup_steps)", warmup, total_steps
        )
    return total_steps, warmup


def warmup_steps(train: TrainConfig, total_steps: int) -> int:
    """Warm-up in optimizer steps: 500 by default, or a tenth of the run if that has no more than 500.

    Raises:
        UserError: the given warm-up is not shorter than the run, so that the peak is never reached.
    """
    if train.scheduler == "none" or total_steps == 0:
        return 0
    if train.warmup_steps is None:
        return DEFAULT_WARMUP if total_steps > DEFAULT_WARMUP else total_steps // 10
    if train.warmup_steps >= total_steps:
        raise UnfitSettings(
            f"train.warmup_steps={train.warmup_steps} is not shorter than the run of {total_steps} steps: "
            "lower it, or train longer (train.epochs, train.fraction)"
        )
    return train.warmup_steps


def check_resamples(adapter: Any, epochs: int, steps_per_epoch: int) -> None:
    """Warn if the run has no resample; check that the learning rate reaches its schedule again between two of them.

    Args:
        adapter: the method's settings; None for full training.

    Raises:
        UserError: ``rewarm_steps`` is not shorter than the steps between resamples.
    """
    total_steps = steps_per_epoch * epochs
    if getattr(adapter, "level", "never") == "never" or not total_steps:
        return
    key, rewarm = f"fnmodel.{adapter.method}", getattr(adapter, "rewarm_steps", 0)
    between = adapter.every * (steps_per_epoch if adapter.level == "epoch" else 1)
    if not count_resamples(adapter, epochs, total_steps):
        log.warning(
            "%s never resamples here: of %d steps, a resample would come after %d (%s.level and every)",
            adapter.method, total_steps, between, key,
        )  # fmt: skip
    elif rewarm >= between:
        raise UnfitSettings(
            f"{key}.rewarm_steps={rewarm} is not shorter than the {between} steps between resamples: lower it, or "
            f"resample less often ({key}.every)"
        )


def build_scheduler(train: TrainConfig, optimizer: Any, warmup: int, total_steps: int) -> Any:
    """The scheduler of the learning rate. Step it after each optimizer step; ``warmup`` is in steps."""
    from transformers import get_scheduler

    return get_scheduler(SCHEDULES[train.scheduler], optimizer, warmup, max(total_steps, 1))
