"""What makes two runs the same run: the settings that change its result, and the directory named after them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from rosa.config import LowRankConfig
from rosa.methods import method_names
from utils.config import Config, TrainConfig

# Keys that change how a run is carried out, not what comes out: another value continues the same run.
EXECUTION = {
    "train": (
        "micro_batch_size",
        "gradient_checkpointing",
        "device",
        "compile",
        "sharding",
        "save_every",
        "save_minutes",
        "keep_last",
        "skip_nonfinite",  # decides about steps that otherwise end the run
    ),
    "dataset": ("path", "cache"),
}

# Keys that came after the first runs: at the default they are not hashed, so that runs of before are found again.
LATER = {"train.validation_fraction": TrainConfig.validation_fraction}


def science(config: Config, data: dict[str, str] | None = None) -> dict[str, Any]:
    """The settings that change the result, as plain values; aliases resolved, what the method ignores left out.

    Args:
        data: digests of the data, where nothing else in the settings says which they are.
    """
    values = dataclasses.asdict(config)
    for group in ("output", "logging", "runs"):
        del values[group]
    for group, keys in EXECUTION.items():
        for key in keys:
            del values[group][key]
    for key, default in LATER.items():
        group, _, name = key.rpartition(".")
        if values[group][name] == default:
            del values[group][name]
    source = config.source
    values["dataset"]["name"] = source.names[0]
    if data is not None:
        values["dataset"]["sha256"] = data
    values["train"]["loss_on"] = config.loss_on()
    del values["train"]["seq_len" if source.packed else "block_size"]
    for method in method_names():
        if method != config.fnmodel.name:
            del values["fnmodel"][method]
    adapter = config.adapter
    if adapter is None:
        del values["fnmodel"]["params"]
    else:
        values["fnmodel"]["params"]["bias"] = "adapted" if adapter.trains_bias else "none"
        if not isinstance(adapter, LowRankConfig):
            del values["fnmodel"]["params"]["rank"]
    return values


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def group_hash(config: Config, data: dict[str, str] | None = None) -> str:
    """The hash shared by runs that differ in their seed only."""
    values = science(config, data)
    del values["seed"]
    return _digest(values)


def run_directory(config: Config, data: dict[str, str] | None = None) -> Path:
    """``<output.path>/<dataset>/<model>-<method>-r<rank>-s<seed>-<hash>``; the label is for people.

    A method without a rank has no ``-r<rank>``. For a run that is to be trained or found, see
    ``utils.runs.digests.find_directory``.
    """
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config.model.name).name).strip(".-") or "model"
    method = config.fnmodel.name
    rank = f"-r{config.adapter.rank}" if isinstance(config.adapter, LowRankConfig) else ""
    label = f"{model}-{method}{rank}-s{config.seed}-{_digest(science(config, data))}"
    return Path(config.output.path) / config.source.names[0] / label
