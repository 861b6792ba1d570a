"""The training loop, top to bottom: indices → batch → loss → gradients → update → log; validate and save each epoch."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from rosa.targets import summary
from utils.log import log, progress, progress_bar
from utils.models.losses import evaluate_losses
from utils.processes.signals import Interrupted
from utils.runs.provenance import peak_memory_mib
from utils.tokens.batches import epoch_batches
from utils.training.failures import NotFinite, not_finite
from utils.training.resume import save, save_due
from utils.training.samples import sample_texts
from utils.training.training import Training


def fit(training: Training) -> None:
    """Train to the end. An epoch ends with a validation and a checkpoint; the next one begins with the resample.

    Raises:
        Interrupted: a signal asked to stop. A checkpoint has every step that was made.
    """
    epochs, done = training.config.train.epochs, training.progress
    training.token_loss.train()
    if done.step == 0 and done.epoch == 0 and done.last is None:
        validate(training)
    with progress_bar(training.total_steps, done.step, main=training.processes.main) as bar:
        saved = True
        while done.epoch < epochs:
            if saved:  # else a stop would lose steps: it waits for the next one
                training.stop.check(now=True)
            if done.batch == 0 and done.epoch > 0 and training.resampler.after_epoch(done.epoch, epochs):
                log_resample(training)
            train_epoch(training, bar)
            saved = end_epoch(training)
    if done.best is None:  # no epoch ran at all, or none since the best checkpoint was lost
        done.best = done.last
        save(training, best=True)


def train_epoch(training: Training, bar: Any) -> None:
    """The remaining optimizer steps of the current epoch, with logging, resamples and checkpoints."""
    config, done = training.config, training.progress
    lengths = training.data.train.lengths
    batches = epoch_batches(lengths, config.train.batch_size, config.train.sort_window, config.seed, done.epoch)
    for number in range(done.batch, len(batches)):
        indices, start = batches[number], time.perf_counter()
        logs = (done.step + 1) % config.logging.print_freq == 0 or done.step + 1 == training.total_steps
        rate = training.scheduler.get_last_lr()[0] * training.resampler.rate_factor(done.step + 1)
        norm = train_step(training, indices, wants_norm=logs)
        done.batch, done.step = number + 1, done.step + 1
        done.samples += len(indices)
        done.tokens += sum(lengths[i] for i in indices)
        losses = training.meter.read(done.step) if logs else {}  # waits for the device, at logging points only
        done.spend("train", start)
        if losses:
            log_step(training, losses, rate, norm, bar)
        by_step = training.resampler.level == "step"  # a training without a resample was warned of at its start
        if by_step and training.resampler.after_step(done.step, training.total_steps):
            log_resample(training)
        bar.update()
        try:
            training.stop.check(now=done.batch == len(batches))
        except Interrupted:
            save(training, best=False)
            raise
        if save_due(training, logs) and done.batch < len(batches):
            save(training, best=False)


def train_step(training: Training, indices: list[int], wants_norm: bool) -> Tensor | None:
    """One optimizer step on the samples ``indices``. The loss is the mean over their tokens on all processes.

    Returns:
        The gradient's norm, on the device; None if neither ``wants_norm`` nor a setting needs it.
    """
    train, data, loss_on = training.config.train, training.data.train, training.collator.loss_on
    tokens = sum(data.loss_tokens(i, loss_on) for i in indices)

    # forward and backward: this process's share, micro-batch by micro-batch
    parts, losses = training.micro_batches(indices)[training.processes.index], []
    for part, chosen in enumerate(parts, 1):
        batch = training.collator(data, chosen)
        with training.placement.micro_batch_context(training.token_loss, last=part == len(parts)):
            nats, _ = training.token_loss(batch.input_ids, batch.positions, batch.labels)
            # the processes' gradients are averaged: times their number, they are the sum over all samples
            training.accelerator.backward(nats * (training.processes.count / max(tokens, 1)))
        losses.append(nats.detach())
    nats = torch.stack(losses).sum()

    step = training.progress.step + 1
    if step == 1:
        warn_of_idle(training)

    # clip
    norm = None
    if train.max_grad_norm or wants_norm or train.skip_nonfinite:
        norm = training.placement.clip(training.trained_parameters(), train.max_grad_norm)

    # update, unless the loss or gradient is not finite and train.skip_nonfinite is set
    scaler = training.accelerator.scaler  # of fp16
    if train.skip_nonfinite and training.meter.count_nonfinite(nats, norm if scaler is None else None, step):
        training.progress.skipped += 1
        training.meter.add(torch.zeros_like(nats), 0, 0)
        if scaler is not None:
            scaler.update()  # it has seen these gradients, and takes no others before
    else:
        training.meter.add(nats, tokens, sum(data.loss_characters(i, loss_on) for i in indices))
        scale = None if scaler is None else scaler.get_scale()
        with training.resampler.rewarmed(step):
            training.optimizer.step()
        if scale is not None and training.meter.count_overflow(scaler.get_scale() < scale, step):
            training.progress.skipped += 1
    training.optimizer.zero_grad(set_to_none=True)
    training.scheduler.step()
    return norm


def warn_of_idle(training: Training) -> None:
    """Log the trained parameters that the first loss does not depend on, such as those of an image model's tower."""
    named = [(name, p) for name, p in training.model.named_parameters() if p.requires_grad]
    if idle := [name for name, parameter in named if parameter.grad is None]:
        log.warning(
            "%d of %d trained parameters get no gradient, though they are counted: %.300s. Leave their layers out "
            "(fnmodel.params.target_modules)", len(idle), len(named), summary(idle),
        )  # fmt: skip


def log_step(training: Training, losses: dict[str, float], rate: float, norm: Tensor | None, bar: Any) -> None:
    """Write a logging point: losses since the last one, learning rate, gradient norm, speed, memory."""
    values = {
        **losses,
        "lr": rate,
        "grad_norm": float(norm) if norm is not None else 0.0,
        **training.throughput.read(),
        "peak_memory_mib": peak_memory_mib(training.device),
    }
    training.write("train", values)
    bar.set_postfix(loss=f"{losses['loss']:.3f}", lr=f"{rate:.1e}")
    progress(
        f"step {training.progress.step}/{training.total_steps} epoch {training.epochs_done:.2f} "
        f"loss {losses['loss']:.4f} lr {rate:.2e} {values['samples_per_second']:.1f} samples/s"
    )


def log_resample(training: Training) -> None:
    """Write the resample that has just happened."""
    done, resampler = training.progress, training.resampler
    done.resamples, done.resampled_at = resampler.number, resampler.resampled_at
    done.seconds["resample"] = done.seconds.get("resample", 0.0) + resampler.seconds
    training.write("resample", {"number": done.resamples, "seconds": resampler.seconds})
    log.info("resample %d at step %d took %.2f s", done.resamples, done.step, resampler.seconds)


def end_epoch(training: Training) -> bool:
    """Validate and save, if that is due (train.validate_every). Returns whether a checkpoint has every step."""
    train, done = training.config.train, training.progress
    before = done.epoch, done.batch
    done.epoch, done.batch = done.epoch + 1, 0
    if done.epoch % train.validate_every and done.epoch < train.epochs:
        due = save_due(training, logging_point=True)
        if due:
            save(training, best=False)
        return due
    try:
        best = validate(training)
    except Interrupted:
        done.epoch, done.batch = before  # a resume begins with this validation
        save(training, best=False)
        raise
    save(training, best)
    return True


def validate(training: Training) -> bool:
    """Compute losses on the validation data and sample texts. Returns True if the loss is the best so far.

    Raises:
        Interrupted: a signal asked to stop. Nothing of this validation is recorded then.
    """
    train, done, start = training.config.train, training.progress, time.perf_counter()
    values = evaluate_losses(
        training.token_loss, training.data.validation, training.collator.pad_id, train.samples_per_pass,
        training.processes, training.stop.check, "validation", train.micro_batch_tokens,
    ).metrics(training.collator.loss_on)  # fmt: skip
    if not math.isfinite(values["loss"]):
        raise training.processes.same_error(not_finite("validation loss", values["loss"], done.step), NotFinite)
    done.spend("validation", start)
    sharded = training.placement.sharded  # no process has the whole model
    texts = [] if sharded else training.processes.run_on_main(lambda: sample_texts(training))
    if texts is None:
        training.stop.check(now=True)
    done.last = {"epoch": done.epoch, "step": done.step, **values}
    best = done.epoch > 0 and (done.best is None or values["loss"] < done.best["loss"])
    if best:
        done.best = done.last
    training.write("validation", values)
    log.info(
        "epoch %d/%d validation loss %.4f%s perplexity %.3f%s",
        done.epoch, train.epochs, values["loss"],
        " (target {loss_target:.4f}, all {loss_all:.4f})".format_map(values) if "loss_target" in values else "",
        values["perplexity"], " *best*" if best else "",
    )  # fmt: skip
    for number, (prompt, text) in enumerate(texts or ()):
        progress(f"sample: {prompt} -> {text}")
        if training.metrics is not None:
            training.metrics.text(f"sample/{number}", done.step, f"{prompt}\n\n**{text}**")
    return best
