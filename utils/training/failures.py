"""Errors of a training that the user can fix, with advice: not finite, out of memory, a full disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import rosa
from rosa.sharding import local_part
from utils.config.train import TrainConfig
from utils.errors import UserError, is_out_of_memory, short_reason
from utils.runs import Run

REMEDY = "lower train.lr"


class Diverged(UserError):
    """The numbers of a training are no longer finite."""


class NotFinite(Diverged):
    """A loss or weight is not finite; ``advice`` adds how to go on."""


def not_finite(what: str, value: float, step: int) -> str:
    """The message for a loss or weight that became NaN or infinite at ``step``."""
    return (
        f"the {what} is {value} at step {step}: {REMEDY}, warm up longer (train.warmup_steps), "
        "set train.max_grad_norm=1, or use train.precision=fp32."
    )


def non_finite_tensors(tensors: Iterable[Any]) -> torch.Tensor:
    """The number of floating-point tensors that hold a NaN or an infinity, as a tensor on their device."""
    bad = [~tensor.isfinite().all() for tensor in map(local_part, tensors) if tensor.is_floating_point()]
    return torch.stack(bad).sum() if bad else torch.zeros((), dtype=torch.long)


def optimizer_tensors(optimizer: Any) -> Iterable[torch.Tensor]:
    """Every tensor of an optimizer's state that is on the device of its parameter."""
    for parameter, values in optimizer.state.items():
        yield from (v for v in values.values() if isinstance(v, torch.Tensor) and v.device == parameter.device)


def advice(error: Exception, train: TrainConfig, folder: Path, step: int | None) -> UserError | None:
    """What to raise in place of an error that the user can fix; None for any other.

    Args:
        folder: the run's.
        step: the number of optimizer steps done; None while the model is still being loaded.
    """
    if is_out_of_memory(error):
        return UserError(_out_of_memory(train, step, error))
    if isinstance(error, NotFinite):
        return Diverged(f"{error}{_going_on(train, folder)}")
    if isinstance(error, rosa.AdapterError) and step is not None:  # from a resample
        advised = f"{REMEDY} or set train.max_grad_norm=1. The checkpoints before it are kept."
        return Diverged(f"{error}, at step {step}: {advised}")
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or folder
        advised = "The last checkpoint is kept: fix this, then run the same command again."
        return UserError(f"{where}: {error.strerror}. {advised}")
    return None


def _going_on(train: TrainConfig, folder: Path) -> str:
    """How the training goes on after a number that is not finite, if it can."""
    kept = Run(folder).last.exists()
    if train.skip_nonfinite:  # what is not finite now does not come from an update that could be left out
        return " The checkpoints before it are kept." if kept else ""
    start = "goes on from the last checkpoint and " if kept else ""
    return f" The same command with train.skip_nonfinite=true {start}leaves such updates out."


def _out_of_memory(train: TrainConfig, step: int | None, error: Exception) -> str:
    if train.micro_batch_tokens:
        key, size, unit = "micro_batch_tokens", train.micro_batch_tokens, "tokens"
    else:
        key, size, unit = "micro_batch_size", train.samples_per_pass, "samples"
    when = "while loading the model" if step is None else f"at step {step + 1}"
    micro = f"train.{key}={max(size // 2, 1)} (the same result), " if size > 1 else ""
    recompute = "" if train.gradient_checkpointing else "train.gradient_checkpointing=true (the same result, slower), "
    reason = short_reason(error, 160)
    return (
        f"out of memory {when}, with {size} {unit} at once (train.batch_size={train.batch_size}, "
        f"train.{key}={getattr(train, key) or 'null'}): set {micro}{recompute}or a lower train.seq_len "
        f"or train.block_size. With the same result, the run goes on from its last checkpoint. ({reason})"
    )
