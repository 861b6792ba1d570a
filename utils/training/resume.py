"""Save a training in a checkpoint, and restore everything in it but the weights, bit for bit."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch

from utils.log import log, progress
from utils.runs import checkpoints
from utils.runs.checkpoint_folder import load_state
from utils.training.failures import NotFinite, non_finite_tensors, not_finite, optimizer_tensors
from utils.training.record import current_progress
from utils.training.training import Training


def save(training: Training, best: bool) -> None:
    """Save everything that a resume needs. The main process writes, the others wait for it.

    Raises:
        UserError: it cannot be written, or something in it is not finite. So every checkpoint is finite.
    """
    start = time.perf_counter()
    _check_finite(training)
    state = training_state(training)
    with training.placement.full_model(training.model) as model:

        def write() -> int:
            if training.metrics is not None:
                training.metrics.note_positions(training.progress)
            fields = current_progress(training)  # before the save: the checkpoint holds the peak of memory too
            size = checkpoints.save(training.run, model, training.progress, state, best, training.identity)
            training.run.update_record(**fields)
            return size

        size = training.processes.run_on_main(write)
    seconds = training.progress.spend("checkpoint", start)
    progress(f"checkpoint of step {training.progress.step}: {size / 2**20:.1f} MiB in {seconds:.2f} s")
    training.saved_at = time.monotonic()


def save_due(training: Training, logging_point: bool) -> bool:
    """Whether a checkpoint is due, by steps or by the clock. Processes agree on the clock at logging points only."""
    train, waited = training.config.train, time.monotonic() - training.saved_at
    late = train.save_minutes is not None and waited >= 60 * train.save_minutes
    if train.save_minutes is not None and training.processes.count > 1:
        anyone = torch.tensor(float(late), device=training.device)
        late = logging_point and bool(training.accelerator.reduce(anyone, "sum"))
    return late or (train.save_every is not None and training.progress.step % train.save_every == 0)


def _check_finite(training: Training) -> None:
    """Raise NotFinite, on every process, if a loss, a weight or the optimizer's state is not finite."""
    step = training.progress.step
    training.meter.nats(step)
    bad = non_finite_tensors([*training.trained_parameters(), *optimizer_tensors(training.optimizer)])
    if float(training.accelerator.reduce(bad.float(), "sum")):
        raise training.processes.same_error(not_finite("model or its optimizer's state", math.nan, step), NotFinite)


def training_state(training: Training) -> dict[str, Any]:
    """The content of state.pt: optimizer, scheduler, scaler, and the generators and loss meter of each process."""
    generators = [torch.get_rng_state()]
    if training.device.type == "cuda":
        generators.append(torch.cuda.get_rng_state(training.device))
    scaler = training.accelerator.scaler
    return {
        "optimizer": training.placement.optimizer_state(training.optimizer),
        "schedule": training.scheduler.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "processes": training.processes.gather({"generators": generators, "meter": training.meter.state_dict()}),
    }


def restore(training: Training, checkpoint: Path) -> None:
    """Restore everything but the weights from ``checkpoint``."""
    state, scaler = load_state(checkpoint), training.accelerator.scaler
    training.placement.load_optimizer_state(training.optimizer, state["optimizer"])
    training.scheduler.load_state_dict(state["schedule"])
    if state["scaler"] is not None and scaler is not None:
        scaler.load_state_dict(state["scaler"])
    done = training.progress
    training.resampler.load_state_dict({"number": done.resamples, "step": done.step, "resampled_at": done.resampled_at})
    _restore_process(training, state["processes"])
    log.info("resumed from %s: epoch %.2f, step %d", checkpoint.name, training.epochs_done, done.step)


def _restore_process(training: Training, saved: list[dict[str, Any]]) -> None:
    """Restore this process's generators and loss. If the number of processes changed, the main one gets all loss."""
    number, count = training.processes.index, training.processes.count
    meters = [process.get("meter") or process["window"] for process in saved]  # window: its name in earlier files
    if len(saved) != count:
        log.info("saved by %d processes, going on with %d: results differ by rounding and dropout", len(saved), count)
        steps = sum(meter["steps"] for meter in meters)
        steps = steps if training.processes.main else torch.zeros_like(steps)
        meter = {**meters[0], "steps": steps}
    else:
        meter = meters[number]
    training.meter.load_state_dict(meter, training.device)
    if number >= len(saved):
        return
    generators = saved[number]["generators"]
    torch.set_rng_state(generators[0])
    if training.device.type == "cuda" and len(generators) > 1:
        torch.cuda.set_rng_state(generators[1], training.device)
