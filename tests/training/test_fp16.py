"""fp16's loss scale: its updates that overflow, and those that train.skip_nonfinite leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from utils.errors import UserError
from utils.training import loop

Train = Callable[..., Any]
SHORT = ("fnmodel.name=lora", "train.epochs=2", "train.batch_size=8", "logging.samples=0")


def scale_losses(training: Any, patch: pytest.MonkeyPatch) -> None:
    """What accelerate does on a GPU for train.precision=fp16, on the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    patch.setattr(training.accelerator, "scaler", scaler)
    patch.setattr(training.accelerator, "native_amp", True)
    patch.setattr(training.accelerator.state, "_mixed_precision", "fp16")
    training.optimizer = AcceleratedOptimizer(training.optimizer.optimizer, device_placement=False, scaler=scaler)


@pytest.fixture
def spoiling(train: Train, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, list[float]]]:
    """A function that trains with scaled losses. ``spoil(training, step)`` acts before each step.

    Returns the run, and the scale after each step.
    """

    def run(spoil: Callable[[Any, int], None], *overrides: str) -> tuple[Any, list[float]]:
        original, scales = loop.train_step, []

        def step(training: Any, *arguments: Any, **options: Any) -> Any:
            if training.accelerator.scaler is None:
                scale_losses(training, monkeypatch)
            spoil(training, training.progress.step + 1)
            found = original(training, *arguments, **options)
            scales.append(training.accelerator.scaler.get_scale())
            return found

        monkeypatch.setattr(loop, "train_step", step)
        return train(*SHORT, *overrides), scales

    return run


def overflowing(*steps: int) -> Callable[[Any, int], None]:
    """Makes a gradient infinite at these steps, and leaves the loss as it is."""

    def spoil(training: Any, step: int) -> None:
        if step in steps:
            first = training.trained_parameters()[0]
            hook = first.register_hook(lambda gradient: hook.remove() or gradient * float("inf"))

    return spoil


def test_training_goes_on_after_an_update_that_was_left_out(spoiling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def infinite(training: Any, step: int) -> None:
        forward = type(training.token_loss).forward
        factor = float("inf") if step == 3 else 1.0
        bad = lambda *a, **k: tuple(x * factor for x in forward(training.token_loss, *a, **k))  # noqa: E731
        monkeypatch.setattr(training.token_loss, "forward", bad)

    run, scales = spoiling(infinite, "train.skip_nonfinite=true")
    record = run.record()
    assert record["status"] == "finished" and record["skipped_updates"] == 1
    assert scales[:4] == [16.0, 16.0, 8.0, 8.0] and len(scales) == record["progress"]["total_steps"]


@pytest.mark.parametrize("skip", ["true", "false"])
def test_overflows_are_counted_and_end_a_run_that_cannot_train(
    spoiling: Any, skip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loss is finite, no gradient is."""
    monkeypatch.setattr("utils.training.loss_meter.OVERFLOWS_IN_A_ROW", 5)

    with pytest.raises(UserError, match="gradients of 5 updates in a row, up to step 8"):
        spoiling(overflowing(2, 4, 5, 6, 7, 8), f"train.skip_nonfinite={skip}")


def test_a_few_overflows_do_not_end_a_run(spoiling: Any) -> None:
    run, scales = spoiling(overflowing(2, 4))
    assert run.record()["status"] == "finished" and run.record()["skipped_updates"] == 2
    assert scales[:4] == [16.0, 8.0, 8.0, 4.0]
