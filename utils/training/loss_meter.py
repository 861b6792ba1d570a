"""The training loss and speed between logging points.

The loss accumulates on the device. Reading it waits for the device, and raises if the loss of any step is not finite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError
from utils.log import log
from utils.models.losses import LossSum
from utils.runs.checkpoint_folder import Progress
from utils.training.failures import REMEDY, Diverged, NotFinite, not_finite

SKIPPED_IN_A_ROW = 10  # this many left-out updates in a row end a run
OVERFLOWS_IN_A_ROW = 40  # in fp16, whose scale is halved each time: from 65536 to 6e-8


class LossMeter:
    """The loss of each step since the last reading, and the number of tokens and characters that it covers.

    Args:
        accelerator: adds up over the processes.
        error: makes the error that every process raises.
    """

    def __init__(self, accelerator: Any, error: Callable[[str, type[UserError]], UserError]) -> None:
        self.accelerator, self.error = accelerator, error
        self.steps: list[Tensor] = []  # this process's nats of each step, on the device
        self.tokens = self.characters = self.skipped_in_a_row = self.overflows_in_a_row = 0

    def add(self, nats: Tensor, tokens: int, characters: int) -> None:
        """Add a step: this process's nats, and the tokens and characters of all processes."""
        self.steps.append(nats)
        self.tokens, self.characters = self.tokens + tokens, self.characters + characters

    def count_nonfinite(self, nats: Tensor, norm: Tensor | None, step: int) -> bool:
        """Whether a step's loss or gradient is not finite on any process. Counts such steps in a row.

        Waits for the device.

        Args:
            norm: the gradient's; None if something else checks it (the scaler of fp16).

        Raises:
            Diverged: it is not finite at ``SKIPPED_IN_A_ROW`` steps in a row.
        """
        finite = torch.stack([nats.float(), *([] if norm is None else [norm.float()])]).isfinite().all()
        if float(self.accelerator.reduce((~finite).float(), "sum")) == 0:
            self.skipped_in_a_row = 0
            return False
        self.skipped_in_a_row += 1
        log.warning("step %d: the loss or the gradient is not finite, the update is left out", step)
        if self.skipped_in_a_row >= SKIPPED_IN_A_ROW:
            raise self.error(
                f"{SKIPPED_IN_A_ROW} updates in a row, up to step {step}, were not finite: {REMEDY}", Diverged
            )
        return True

    def count_overflow(self, skipped: bool, step: int) -> bool:
        """Whether fp16's scaler left the update out, as it does a few times until it has found its scale.

        Raises:
            Diverged: it has left out ``OVERFLOWS_IN_A_ROW`` updates in a row.
        """
        self.overflows_in_a_row = self.overflows_in_a_row + 1 if skipped else 0
        if self.overflows_in_a_row >= OVERFLOWS_IN_A_ROW:
            raise self.error(
                f"the gradients of {OVERFLOWS_IN_A_ROW} updates in a row, up to step {step}, were not finite: {REMEDY}",
                Diverged,
            )
        return skipped

    def nats(self, step: int) -> float:
        """The loss in nats, summed over the steps since the last reading and over processes. Waits for the device.

        Args:
            step: the number of the last of these steps.

        Raises:
            NotFinite: the loss of a step is not finite; the text has its number.
        """
        if not self.steps:
            return 0.0
        steps = self.accelerator.reduce(torch.stack(self.steps), "sum").cpu().double()
        bad = (~steps.isfinite()).nonzero()
        if len(bad):
            first = int(bad[0])
            text = not_finite("training loss", float(steps[first]), step - len(steps) + 1 + first)
            raise self.error(text, NotFinite)
        return float(steps.sum())

    def read(self, step: int) -> dict[str, float]:
        """The metrics of the mean loss since the last reading; {} if there were no tokens. Waits for the device."""
        total = LossSum(self.nats(step), self.tokens, self.characters)
        self.steps, self.tokens, self.characters = [], 0, 0
        return total.metrics() if total.tokens else {}

    def state_dict(self) -> dict[str, Any]:
        """This process's part, exact to the bit."""
        steps = torch.stack(self.steps).cpu() if self.steps else torch.zeros(0)
        return {"steps": steps, "tokens": self.tokens, "characters": self.characters}

    def load_state_dict(self, saved: dict[str, Any], device: torch.device) -> None:
        """Continue from a ``state_dict``."""
        self.steps = [*saved["steps"].to(device)]
        self.tokens, self.characters = saved["tokens"], saved["characters"]


class Throughput:
    """Samples and tokens per second of training since the last reading.

    Args:
        progress: counts the samples, tokens and seconds.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._last = self._counts()

    def read(self) -> dict[str, float]:
        """The rates since the last call."""
        last, self._last = self._last, self._counts()
        samples, tokens, seconds = (now - before for now, before in zip(self._last, last, strict=True))
        return {
            "samples_per_second": samples / max(seconds, 1e-9),
            "tokens_per_second": tokens / max(seconds, 1e-9),
        }

    def _counts(self) -> tuple[int, int, float]:
        return self.progress.samples, self.progress.tokens, self.progress.seconds.get("train", 0.0)
