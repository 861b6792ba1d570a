"""Keys of ``train`` that depend on each other: the parameters of each optimizer, batches, the warm-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utils.config import TrainConfig

OPTIMIZER_PARAMETERS = {
    "adamw": ("weight_decay", "betas", "eps"),
    "adam": ("weight_decay", "betas", "eps"),
    "sgd": ("weight_decay", "momentum"),
}


def train_problems(train: TrainConfig) -> list[str]:
    """What is wrong with keys of ``train`` that depend on each other, one sentence for each problem."""
    problems = []
    for name in ("weight_decay", "betas", "eps", "momentum"):
        takes = OPTIMIZER_PARAMETERS.get(train.optimizer, ())
        if getattr(train, name) is not None and takes and name not in takes:
            problems.append(f"train.{name} is not a parameter of {train.optimizer}, which takes {', '.join(takes)}")
    if train.betas is not None and not (len(train.betas) == 2 and all(0 <= beta < 1 for beta in train.betas)):
        problems.append(f"train.betas={list(train.betas)} must be two numbers in [0, 1)")
    if train.micro_batch_size and train.micro_batch_size > train.batch_size:
        problems.append(f"train.micro_batch_size={train.micro_batch_size} is above train.batch_size={train.batch_size}")
    if train.scheduler == "none" and train.warmup_steps:
        problems.append("train.warmup_steps has no effect with train.scheduler=none: use constant, or leave it out")
    return problems
