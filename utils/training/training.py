"""The state of a training: everything that the loop works on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import rosa
from utils.config.settings import Config
from utils.processes.group import Processes
from utils.processes.signals import StopRequest
from utils.runs import Run
from utils.runs.checkpoint_folder import Progress
from utils.runs.metrics_writer import MetricsWriter
from utils.runs.run import Identity
from utils.tokens.batches import Collator, micro_batches
from utils.training.data import TrainingData
from utils.training.loss_meter import LossMeter, Throughput
from utils.training.placement import Placement


@dataclass
class Training:
    """The parts of a training and its progress. ``set_up`` makes it, ``fit`` trains it."""

    config: Config
    run: Run
    identity: Identity
    stop: StopRequest
    placement: Placement  # the model on one process or several
    tokenizer: Any
    data: TrainingData
    model: Any  # adapted; without the wrappers of several processes
    token_loss: Any  # the model with its loss, wrapped for several processes
    optimizer: Any
    scheduler: Any  # of the learning rate
    resampler: rosa.Resampler
    collator: Collator
    total_steps: int  # optimizer steps of all epochs
    progress: Progress
    meter: LossMeter
    throughput: Throughput
    metrics: MetricsWriter | None = None  # None on all processes but the main one
    saved_at: float = field(default_factory=time.monotonic)  # time of the last checkpoint, in seconds

    @property
    def processes(self) -> Processes:
        return self.stop.processes

    @property
    def accelerator(self) -> Any:
        return self.placement.accelerator

    @property
    def device(self) -> torch.device:
        return self.placement.device

    @property
    def epochs_done(self) -> float:
        """Epochs done, with a fraction for the current one."""
        steps = math.ceil(len(self.data.train) / self.config.train.batch_size)
        return self.progress.epoch + self.progress.batch / max(steps, 1)

    def micro_batches(self, indices: Sequence[int]) -> list[list[list[int]]]:
        """For each process its share of the samples ``indices``, as one part for each forward pass."""
        train = self.config.train
        size, limit = train.samples_per_pass, train.micro_batch_tokens
        return micro_batches(indices, self.data.train.lengths, self.processes.count, size, limit, self.device)

    def trained_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def write(self, split: str, values: dict[str, float]) -> None:
        """Write a logging point of the current step."""
        if self.metrics is not None:
            self.metrics.write(split, self.progress.step, self.epochs_done, values)

    def close(self) -> None:
        """Give the loggers the final metrics of a complete run, and close the files."""
        if self.metrics is None:
            return
        if self.progress.epoch == self.config.train.epochs and self.progress.best:
            self.metrics.finish({k: v for k, v in self.progress.best.items() if k != "step"})
        self.metrics.close()
