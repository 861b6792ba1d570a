"""The fields of a run's record (run.json) that describe its training."""

from __future__ import annotations

import dataclasses
from typing import Any

import rosa
from utils.log import log
from utils.runs.provenance import costs, git_commit, hardware, now, peak_memory_mib, versions
from utils.runs.run import FIRST_IDS
from utils.tokens.encoding import first_ids
from utils.training.training import Training


def start_fields(training: Training) -> dict[str, Any]:
    """The fields when a training starts or resumes; ``started`` is the time of the first start.

    ``starts`` has the time, step, code and hardware of every start, the other fields those of the last one.
    """
    config, run = training.config, training.run
    code = {"versions": versions(), "git_commit": git_commit()}
    before = run.record() if run.record_file.exists() else {}
    first = next(iter(before.get("starts", [])), before)
    changed = [key for key in code if first.get(key) not in (None, code[key])]
    if changed and training.progress.step:
        log.warning("the run goes on with other %s than it was begun with (run.json: starts)", " and ".join(changed))
    device = hardware(training.device, training.processes.count, training.placement.precision)
    device["costs"] = costs(dataclasses.asdict(config.train))
    start = {"time": now(), "step": training.progress.step, **code, "hardware": device}
    return {
        "format": 1,
        "status": "running",
        "dataset": config.source.names[0],
        "model": config.model.name,
        **(training.identity or {}),
        **({} if before else {"started": start["time"]}),
        "finished": None,
        "error": None,
        "diverged": False,
        **code,
        "hardware": device,
        "starts": [*before.get("starts", []), start],
    }


def description(training: Training) -> dict[str, Any]:
    """The fields that are known before training starts: method, parameters, data."""
    report = rosa.parameter_report(training.model)
    log.info("%s", report)
    if training.metrics is not None and training.progress.last is None:
        training.metrics.scalar("model/trainable_parameters", report.trainable)
    config, data = training.config, training.data
    adapter, layers_only = config.adapter, config.fnmodel.trained_layers is not None
    trains_bias = layers_only if adapter is None else adapter.trains_bias
    return {
        "rank": getattr(adapter, "rank", None),
        "bias": "adapted" if trains_bias else None if adapter is None else "none",
        "loss_on": training.collator.loss_on,
        FIRST_IDS: first_ids(training.tokenizer),
        "parameters": {
            "total": report.total,
            "trainable": report.trainable,
            "adapted_layers": len(report.layers),
        },
        "data": {"train": data.train.describe(), "validation": data.validation.describe()},
    }


def current_progress(training: Training) -> dict[str, Any]:
    """The fields that change as training goes on: progress, timings, and the best and last validation.

    The peak of memory until now enters the progress as well, so that a resumed run has that of its earlier processes.
    """
    done = training.progress
    done.peak_memory_mib = max(done.peak_memory_mib, round(peak_memory_mib(training.device), 1))
    seconds = max(done.seconds.get("train", 0.0), 1e-9)
    return {
        "progress": {"epoch": done.epoch, "step": done.step, "total_steps": training.total_steps},
        "timings": {
            **{f"{kind}_seconds": round(value, 3) for kind, value in done.seconds.items()},
            "resamples": done.resamples,
            "samples_per_second": round(done.samples / seconds, 2),
            "tokens_per_second": round(done.tokens / seconds, 1),
            "peak_memory_mib": done.peak_memory_mib,
        },
        "skipped_updates": done.skipped,
        "best": done.best,
        "last": done.last,
    }
