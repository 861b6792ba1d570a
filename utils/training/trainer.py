"""Fine-tune one model: the loop, validation, checkpoints and resume."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import torch

import rosa
from utils.config import Config
from utils.generation.generate import Decoding, generate
from utils.generation.prompts import shorten
from utils.log import log, progress, progress_bar
from utils.models import compilation
from utils.models.loading import load_model, load_tokenizer, max_positions
from utils.models.token_loss import TokenLoss, evaluate_losses
from utils.processes.signals import Interrupted, StopRequest
from utils.runs import Run
from utils.runs import checkpoints as state
from utils.runs.digests import agree_on_data
from utils.runs.metrics_writer import MetricsWriter
from utils.runs.provenance import peak_memory_mib
from utils.tokens.batches import collate, epoch_batches
from utils.training import optimizers as optim
from utils.training.data import check_lengths, load_training_data
from utils.training.failures import non_finite_tensors, not_finite, optimizer_tensors
from utils.training.loss_meter import LossWindow
from utils.training.placement import build_placement


class Trainer:
    """One run from its configuration to its last checkpoint; an unfinished run goes on where it stopped."""

    def __init__(self, config: Config, run: Run, stop: StopRequest) -> None:
        self.config, self.run, self.stop, self.processes = config, run, stop, stop.processes
        processes = self.processes
        self.placement = build_placement(config.train, processes)
        self.accelerator, self.precision = self.placement.accelerator, self.placement.precision
        self.device = self.placement.device
        self.main = processes.main
        self.loss_on = config.loss_on()
        torch.manual_seed(config.seed)

        self.tokenizer = load_tokenizer(config.model.name)
        data = load_training_data(config, self.tokenizer)
        agree_on_data(run, data.digests, config.dataset, processes)
        self.data_digests = data.digests
        self.train_data, self.validation_data, self.validation_prompts = data.train, data.validation, data.prompts
        self.model = load_model(config.model.name, config.model.dropout)
        check_lengths(data, self.model, config)
        self.steps_per_epoch = math.ceil(len(self.train_data) / config.train.batch_size)
        self.total_steps = self.steps_per_epoch * config.train.epochs
        optim.warmup_steps(config.train, self.total_steps)  # a wrong warm-up fails before the factorisation

        restored = processes.decided_by_main(lambda: state.resume(run))
        token_loss = self._adapt(restored)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = optim.build_optimizer(config.train, parameters, self.device)
        self.schedule = optim.build_schedule(config.train, self.optimizer, self.total_steps)
        self.resampler = rosa.Resampler(self.model, self.optimizer, config.adapter())
        if config.train.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        token_loss.checked(self.validation_data, self.tokenizer.pad_token_id, self.device)
        if compilation.wanted(config.train.compile, self.device):
            token_loss.compile()
        self.forward, self.stepper = self.placement.prepare(token_loss, self.optimizer)
        self.window = LossWindow(self.accelerator, processes.same_error)
        self.saved_at = time.monotonic()
        self.mark = (0.0, 0, 0)  # train seconds, samples and tokens at the last logging point
        torch.manual_seed(config.seed + 1_000_003 * processes.rank)  # dropout differs by process
        self.progress = restored[1] if restored else state.Progress()
        if restored:
            self._restore(restored[0])
            self.mark = (self.progress.seconds.get("train", 0.0), self.progress.samples, self.progress.tokens)
        self.metrics = MetricsWriter(run, self.progress) if self.main else None

    def _adapt(self, restored: tuple[Any, state.Progress] | None) -> TokenLoss:
        """Bring the model to its start, or to its checkpoint's values, on the device."""
        adapter, start = self.config.adapter(), time.perf_counter()
        if restored:
            state.load_weights(restored[0], self.model)
        elif adapter is not None:
            rosa.inject(self.model, adapter, start=False)
        token_loss = TokenLoss(self.model)
        self.placement.place(token_loss)
        if adapter is not None and not restored:
            rosa.start_adapters(self.model)
            log.info("adapted %d layers in %.1f s", len(rosa.adapter_layers(self.model)), time.perf_counter() - start)
        return token_loss

    def describe(self) -> dict[str, Any]:
        """What the record says of this run before it starts."""
        report = rosa.parameter_report(self.model)
        log.info("%s", report)
        if self.metrics is not None and self.progress.last is None:
            self.metrics.scalar("model/trainable_parameters", report.trainable)
        adapter = self.config.adapter()
        return {
            "rank": adapter.rank if adapter else None,
            "bias": None if adapter is None else "adapted" if adapter.trains_bias else "none",
            "loss_on": self.loss_on,
            "parameters": {
                "total": report.total,
                "trainable": report.trainable,
                "adapted_layers": len(report.layers),
            },
            "data_sha256": self.data_digests,
            "data": {"train": self.train_data.describe(), "validation": self.validation_data.describe()},
        }

    # -- the loop ------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end: each epoch validates, saves, and only then (at the next one's start) resamples.

        Raises:
            Interrupted: a signal asked for a stop; every step that was made is in a checkpoint.
        """
        epochs, done = self.config.train.epochs, self.progress
        self.forward.train()
        if done.step == 0 and done.epoch == 0 and done.last is None:
            self.validate()
        with progress_bar(self.total_steps, done.step, main=self.main) as bar:
            while done.epoch < epochs:
                self.stop.check(now=True)
                if done.batch == 0 and done.epoch > 0:
                    self._note_resample(self.resampler.after_epoch(done.epoch, epochs))
                self._train_epoch(bar)
                self._end_epoch()
        if done.best is None:  # no epoch at all, or none since the best checkpoint was lost
            done.best = done.last
            self.save(best=True)

    def _end_epoch(self) -> None:
        done = self.progress
        before = done.epoch, done.batch
        done.epoch, done.batch = done.epoch + 1, 0
        try:
            best = self.validate()
        except Interrupted:
            done.epoch, done.batch = before  # the epoch's steps are done: a resume begins with its validation
            self.save(best=False)
            raise
        self.save(best)

    def _train_epoch(self, bar: Any) -> None:
        train, done = self.config.train, self.progress
        lengths = [len(sample.ids) for sample in self.train_data.samples]
        batches = epoch_batches(lengths, train.batch_size, train.sort_window, self.config.seed, done.epoch)
        for number in range(done.batch, len(batches)):
            indices = batches[number]
            start = time.perf_counter()
            logging = (done.step + 1) % self.config.logging.print_freq == 0 or done.step + 1 == self.total_steps
            rate = self.schedule.get_last_lr()[0]
            norm = self._step(indices, wants_norm=logging)
            done.batch, done.step = number + 1, done.step + 1
            done.samples += len(indices)
            done.tokens += sum(lengths[i] for i in indices)
            losses = self.window.read(done.step) if logging else {}
            self._spend("train", start)
            if losses:
                self._log_step(losses, rate, norm, bar)
            self._note_resample(self.resampler.after_step(done.step, self.total_steps))
            bar.update()
            try:
                self.stop.check(now=done.batch == len(batches))
            except Interrupted:
                self.save(best=False)
                raise
            if self._save_due(logging) and done.batch < len(batches):
                self.save(best=False)

    def _save_due(self, together: bool) -> bool:
        """Whether a checkpoint is due by steps or by the clock, on which processes agree at logging points only."""
        train, waited = self.config.train, time.monotonic() - self.saved_at
        late = train.save_minutes is not None and waited >= 60 * train.save_minutes
        if train.save_minutes is not None and self.accelerator.num_processes > 1:
            anyone = torch.tensor(float(late), device=self.device)
            late = together and bool(self.accelerator.reduce(anyone, "sum"))
        return late or (train.save_every is not None and self.progress.step % train.save_every == 0)

    def _step(self, indices: list[int], wants_norm: bool) -> torch.Tensor | None:
        """One optimizer step on the samples ``indices``: the mean loss of their tokens, over all processes.

        Returns the gradient's norm, on the device, if it is wanted or clipped by.
        """
        train, processes = self.config.train, self.processes.count
        tokens = sum(self.train_data.loss_tokens(i, self.loss_on) for i in indices)
        mine = indices[self.processes.rank :: processes]
        size = train.micro_batch_size or train.batch_size
        # every process takes the same number of forward passes, an empty one if need be
        parts, losses = math.ceil(math.ceil(len(indices) / processes) / size), []
        for part in range(parts):
            share = mine[part * size : (part + 1) * size]
            batch = collate(self.train_data, share, self.loss_on, self.tokenizer.pad_token_id, self.device)
            with self.placement.backward_pass(self.forward, last=part + 1 == parts):
                nats, _ = self.forward(batch.input_ids, batch.positions, batch.labels)
                # gradients are averaged over processes: times their number, it is the sum over all samples
                self.accelerator.backward(nats * (processes / max(tokens, 1)))
            losses.append(nats.detach())
        nats, norm = torch.stack(losses).sum(), None
        if train.max_grad_norm or wants_norm or train.skip_nonfinite:
            trained = [p for p in self.model.parameters() if p.requires_grad]
            norm = self.placement.clip(trained, train.max_grad_norm)
        scaled = self.accelerator.scaler is not None
        if train.skip_nonfinite and self.window.rejects(nats, None if scaled else norm, self.progress.step + 1):
            self.progress.skipped += 1
            self.window.add(torch.zeros_like(nats), 0, 0)
        else:
            characters = sum(self.train_data.loss_characters(i, self.loss_on) for i in indices)
            self.window.add(nats, tokens, characters)
            self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.schedule.step()
        return norm

    def _spend(self, kind: str, start: float) -> float:
        seconds = time.perf_counter() - start
        self.progress.seconds[kind] = self.progress.seconds.get(kind, 0.0) + seconds
        return seconds

    def _log_step(self, losses: dict[str, float], rate: float, norm: torch.Tensor | None, bar: Any) -> None:
        done = self.progress
        seconds = max(done.seconds["train"] - self.mark[0], 1e-9)
        values = {
            **losses,
            "lr": rate,
            "grad_norm": float(norm) if norm is not None else 0.0,
            "samples_per_second": (done.samples - self.mark[1]) / seconds,
            "tokens_per_second": (done.tokens - self.mark[2]) / seconds,
            "peak_memory_mib": peak_memory_mib(self.device),
        }
        self.mark = (done.seconds["train"], done.samples, done.tokens)
        self._write("train", values)
        bar.set_postfix(loss=f"{losses['loss']:.3f}", lr=f"{rate:.1e}")
        progress(
            f"step {done.step}/{self.total_steps} epoch {self._epochs():.2f} loss {losses['loss']:.4f} lr {rate:.2e} "
            f"{values['samples_per_second']:.1f} samples/s"
        )

    def _epochs(self) -> float:
        """Epochs done, as a decimal."""
        return self.progress.epoch + self.progress.batch / max(self.steps_per_epoch, 1)

    def _write(self, split: str, values: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics.write(split, self.progress.step, self._epochs(), values)

    def _note_resample(self, happened: bool) -> None:
        if happened:
            done = self.progress
            done.resamples = self.resampler.number
            done.seconds["resample"] = done.seconds.get("resample", 0.0) + self.resampler.seconds
            self._write("resample", {"number": done.resamples, "seconds": self.resampler.seconds})
            log.info("resample %d at step %d took %.2f s", done.resamples, done.step, self.resampler.seconds)

    # -- validation, checkpoints ---------------------------------------------------------------------------

    def validate(self) -> bool:
        """Losses on the validation data, and sample texts; True if the loss is the best so far.

        Raises:
            Interrupted: a signal asked for a stop; nothing was recorded, as if it had not begun.
        """
        start, done = time.perf_counter(), self.progress
        everything = range(len(self.validation_data))
        losses = evaluate_losses(
            self.forward, self.validation_data, everything, self._evaluation_batch(), self.tokenizer.pad_token_id,
            self.device, self.processes, self.stop.check, "validation",
        )  # fmt: skip
        values = losses.metrics(self.loss_on)
        if not math.isfinite(values["loss"]):
            raise self.processes.same_error(not_finite("validation loss", values["loss"], done.step))
        self._spend("validation", start)
        texts = [] if self.placement.sharded else self.processes.decided_by_main(self._sample_texts)
        if texts is None:
            self.stop.check(now=True)
        done.last = {"epoch": done.epoch, "step": done.step, **values}
        best = done.epoch > 0 and (done.best is None or values["loss"] < done.best["loss"])
        if best:
            done.best = done.last
        self._write("validation", values)
        log.info(
            "epoch %d/%d validation loss %.4f%s perplexity %.3f%s",
            done.epoch, self.config.train.epochs, values["loss"],
            " (target {loss_target:.4f}, all {loss_all:.4f})".format_map(values) if "loss_target" in values else "",
            values["perplexity"], " *best*" if best else "",
        )  # fmt: skip
        for number, (prompt, text) in enumerate(texts or ()):
            progress(f"sample: {prompt} -> {text}")
            if self.metrics is not None:
                self.metrics.text(f"sample/{number}", done.step, f"{prompt}\n\n**{text}**")
        return best

    def _evaluation_batch(self) -> int:
        return self.config.train.micro_batch_size or self.config.train.batch_size

    def _sample_texts(self) -> list[tuple[str, str]] | None:
        """A few validation prompts, spread over the split, each with its greedy text; None after a stop request."""
        known = self.validation_prompts
        count = min(self.config.logging.samples, len(known))
        prompts = [known[i * len(known) // count] for i in range(count)]
        limit = max_positions(self.model) or 10**9
        room = min(64, limit - max((s.prompt_length for s in self.validation_data.samples), default=0))
        if not prompts or room < 1:
            return []
        prompts = shorten(prompts, self.tokenizer, limit - room)  # blocks say nothing of the prompts' lengths
        decoding = Decoding(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=room)
        try:
            with rosa.merged(self.model), self.accelerator.autocast():
                texts = generate(self.model, self.tokenizer, prompts, decoding, count, check=self.stop.check_here)
        except Interrupted:
            return None
        return list(zip(prompts, texts, strict=True))

    def save(self, best: bool) -> None:
        """Save everything a resume needs; the main process writes, the others wait for it.

        Raises:
            UserError: it cannot be written, or something in it is not finite: whatever is saved is good.
        """
        start = time.perf_counter()
        self.window.nats(self.progress.step)
        trained = (p for p in self.model.parameters() if p.requires_grad)
        bad = non_finite_tensors([*trained, *optimizer_tensors(self.optimizer)])
        if float(self.accelerator.reduce(bad.float(), "sum")):
            raise self.processes.same_error(not_finite("model or its optimizer's state", math.nan, self.progress.step))
        generators = [torch.get_rng_state()]
        if self.device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(self.device))
        scaler = self.accelerator.scaler
        payload = {
            "optimizer": self.placement.optimizer_state(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "processes": self.processes.gathered({"generators": generators, "window": self.window.state_dict()}),
        }
        with self.placement.portable(self.model) as model:
            size = self.processes.decided_by_main(lambda: self._write_checkpoint(model, payload, best))
        seconds = self._spend("checkpoint", start)
        progress(f"checkpoint of step {self.progress.step}: {size / 2**20:.1f} MiB in {seconds:.2f} s")
        self.saved_at = time.monotonic()

    def _write_checkpoint(self, model: Any, payload: dict[str, Any], best: bool) -> int:
        if self.metrics is not None:
            self.metrics.note_positions(self.progress)
        size = state.save(self.run, model, self.progress, payload, best)
        self.run.update_record(**self.standing())
        return size

    def _restore(self, folder: Any) -> None:
        payload = state.load_state(folder)
        self.placement.load_optimizer_state(self.optimizer, payload["optimizer"])
        self.schedule.load_state_dict(payload["schedule"])
        if payload["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(payload["scaler"])
        self.resampler.number = self.progress.resamples
        self._restore_process(payload["processes"])
        log.info("resumed from %s: epoch %.2f, step %d", folder.name, self._epochs(), self.progress.step)

    def _restore_process(self, saved: list[dict[str, Any]]) -> None:
        """The generators and the part of the window's loss that this process had, as far as there was one."""
        rank, count = self.processes.rank, self.processes.count
        if len(saved) != count:
            log.info("saved by %d processes, going on with %d: equal up to rounding, and dropout", len(saved), count)
            steps = sum(process["window"]["steps"] for process in saved)
            window = {**saved[0]["window"], "steps": steps if self.main else torch.zeros_like(steps)}
        else:
            window = saved[rank]["window"]
        self.window.load_state_dict(window, self.device)
        if rank >= len(saved):
            return
        generators = saved[rank]["generators"]
        torch.set_rng_state(generators[0])
        if self.device.type == "cuda" and len(generators) > 1:
            torch.cuda.set_rng_state(generators[1], self.device)

    def standing(self) -> dict[str, Any]:
        """How far the run is, for its record."""
        done = self.progress
        seconds = max(done.seconds.get("train", 0.0), 1e-9)
        return {
            "progress": {"epoch": done.epoch, "step": done.step, "total_steps": self.total_steps},
            "timings": {
                **{f"{kind}_seconds": round(value, 3) for kind, value in done.seconds.items()},
                "resamples": done.resamples,
                "samples_per_second": round(done.samples / seconds, 2),
                "tokens_per_second": round(done.tokens / seconds, 1),
                "peak_memory_mib": round(peak_memory_mib(self.device), 1),
            },
            "skipped_updates": done.skipped,
            "best": done.best,
            "last": done.last,
        }

    def close(self) -> None:
        """Write TensorBoard's table of runs and close the files."""
        if self.metrics is None:
            return
        if self.progress.epoch == self.config.train.epochs and self.progress.best:
            settings = {name: value for name, value in flatten(dataclasses.asdict(self.config)).items()}
            self.metrics.hyperparameters(settings, {k: v for k, v in self.progress.best.items() if k != "step"})
        self.metrics.close()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
