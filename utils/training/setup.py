"""From a configuration to a training that can start, or resume from its last checkpoint."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

import rosa
from utils.config.settings import Config
from utils.config.train import TrainConfig
from utils.io.yaml_files import dotted
from utils.log import log
from utils.models import compilation
from utils.models.causality import check_causal
from utils.models.frozen_blocks import frozen_blocks
from utils.models.loading import recompute_activations
from utils.models.token_loss import TokenLoss
from utils.processes.signals import StopRequest
from utils.runs import Run
from utils.runs.checkpoint_folder import Progress, load_weights
from utils.runs.checkpoints import select_checkpoint
from utils.runs.inputs import agree_on_inputs, model_inputs
from utils.runs.metrics_writer import MetricsWriter
from utils.runs.run import Identity
from utils.runs.trained import load_base, tokenizer_of
from utils.tokens.batches import Collator
from utils.training.data import TrainingData, check_lengths, load_training_data
from utils.training.loss_meter import LossMeter, Throughput
from utils.training.optimizers import build_optimizer, build_scheduler, step_counts
from utils.training.placement import Placement, build_placement
from utils.training.resume import restore
from utils.training.training import Training


def set_up(config: Config, precision: str, run: Run, stop: StopRequest, identity: Identity = None) -> Training:
    """Load data and model, adapt and distribute the model, build the optimizer, and restore the newest checkpoint.

    Args:
        precision: in which the model computes: fp32, bf16 or fp16.
        identity: of the run, which its checkpoints carry.

    Raises:
        UserError: the data, the model, the settings or the checkpoints do not fit.
    """
    train, processes = config.train, stop.processes
    placement = build_placement(train, precision, processes)
    torch.manual_seed(config.seed)

    # data and bare model
    tokenizer = tokenizer_of(run, config)
    data = load_training_data(config, tokenizer)
    model = load_base(config.model, config.model.adapter)
    data.inputs.update(processes.run_on_main(lambda: model_inputs(run, config.model)))  # the hub's cache has it now
    agree_on_inputs(run, data.inputs, config, processes)
    check_lengths(data, model, config)
    total_steps, warmup = step_counts(config, len(data.train))  # a wrong warm-up fails before the factorisation

    # adapters or the checkpoint's weights, on the device
    checkpoint, progress = processes.run_on_main(lambda: select_checkpoint(run, identity)) or (None, Progress())
    token_loss = _adapt(model, config, placement, checkpoint)

    # optimizer, scheduler, resampler, batches
    optimizer = build_optimizer(train, model, placement.device)
    scheduler = build_scheduler(train, optimizer, warmup, total_steps)
    resampler = rosa.Resampler(model, optimizer, config.adapter)
    collator = Collator(tokenizer.pad_token_id, config.loss_on(), placement.device)
    _choose_fast_paths(token_loss, data, collator, train, precision)
    token_loss, optimizer = placement.prepare(token_loss, optimizer)

    torch.manual_seed(config.seed + 1_000_003 * processes.index)  # dropout differs by process
    training = Training(
        config=config,
        run=run,
        identity=identity,
        stop=stop,
        placement=placement,
        tokenizer=tokenizer,
        data=data,
        model=model,
        token_loss=token_loss,
        optimizer=optimizer,
        scheduler=scheduler,
        resampler=resampler,
        collator=collator,
        total_steps=total_steps,
        progress=progress,
        meter=LossMeter(placement.accelerator, processes.same_error),
        throughput=Throughput(progress),
    )
    if checkpoint is not None:
        restore(training, checkpoint)
    if processes.main:
        training.metrics = MetricsWriter(run, progress, config.logging.to, dotted(dataclasses.asdict(config)))
    return training


def _adapt(model: Any, config: Config, placement: Placement, checkpoint: Path | None) -> Any:
    """Adapt or freeze the model, or load its checkpoint, and distribute it. Returns the model with its loss."""
    adapter, start = config.adapter, time.perf_counter()
    if adapter is not None:
        rosa.inject(model, adapter, start=False, keep_base=False)
    if checkpoint is not None:
        load_weights(checkpoint, model)
    if config.fnmodel.trained_layers is not None:
        rosa.train_only(model, config.fnmodel.trained_layers)
    token_loss = TokenLoss(model)
    placement.distribute(token_loss)
    if adapter is not None and checkpoint is None:
        rosa.start_adapters(model)
        log.info("adapted %d layers in %.1f s", len(rosa.adapter_layers(model)), time.perf_counter() - start)
    if config.train.gradient_checkpointing:
        recompute_activations(model)
    return token_loss


def _choose_fast_paths(
    token_loss: Any, data: TrainingData, collator: Collator, train: TrainConfig, precision: str
) -> None:
    """Let the model compute its losses in the fastest way that trials and the settings allow, once it is causal."""
    check_causal(token_loss)
    token_loss.choose_fast_paths(data.validation, collator.pad_id)
    if train.cache_frozen:
        lengths = data.train.lengths
        ends = lengths.index(min(lengths)), lengths.index(max(lengths))
        frozen = frozen_blocks(token_loss, collator(data.train, ends))
        log.info(
            "the first %d of %d blocks are computed once for each sample, and torch.compile is left out: each process "
            "keeps outputs of up to %.0f MiB",
            frozen.count, frozen.total, frozen.expected_bytes(data.train, data.validation) / 2**20,
        )  # fmt: skip
        if train.cache_folder is not None:
            frozen.share(Path(train.cache_folder).expanduser(), precision, data.train, data.validation)
        token_loss.frozen = frozen
    elif compilation.should_compile(train.compile, collator.device):
        token_loss.compile()
