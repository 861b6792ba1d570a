"""The identity of a run: the settings that change its result, and the directory that is named after them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from rosa.config import LowRankConfig
from rosa.methods import method_names
from utils.config import Config, DatasetConfig, TrainConfig
from utils.text import slug

# Groups and keys that do not change the result of a run: with another value the same run continues.
WITHOUT_EFFECT = (
    "runs",
    "output",
    "logging",
    "dataset.path",
    "dataset.cache",
    "train.micro_batch_size",
    "train.gradient_checkpointing",
    "train.device",
    "train.compile",
    "train.sharding",
    "train.save_every",
    "train.save_minutes",
    "train.keep_last",
    "train.skip_nonfinite",  # matters only at steps that otherwise end the run
)

# Keys of later versions. Their default is not hashed, so that runs of earlier versions are found again.
LATER = {
    "train.validation_fraction": TrainConfig.validation_fraction,
    "train.validate_every": TrainConfig.validate_every,
    "dataset.size": DatasetConfig.size,
    "dataset.book": DatasetConfig.book,
}


def science(config: Config, data: dict[str, str] | None = None) -> dict[str, Any]:
    """The settings that change the result, as plain values, with aliases resolved and without keys that have no effect.

    Args:
        data: digests of the data, if no other setting identifies them.
    """
    values = dataclasses.asdict(config)
    for key in WITHOUT_EFFECT:
        group, name = _place(values, key)
        del group[name]
    for key, default in LATER.items():
        group, name = _place(values, key)
        if group[name] == default:
            del group[name]
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


def _place(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The group of ``values`` that holds a dotted key, and the key's name in it."""
    group, _, name = key.rpartition(".")
    return (values[group] if group else values), name


def _hash(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def group_hash(config: Config, data: dict[str, str] | None = None) -> str:
    """The hash that runs share if only their seeds differ."""
    values = science(config, data)
    del values["seed"]
    return _hash(values)


def run_directory(config: Config, data: dict[str, str] | None = None) -> Path:
    """``<output.path>/<dataset>/<model>-<method>-r<rank>-s<seed>-<hash>``; the label is for people.

    A method without a rank has no ``-r<rank>``. For a run that is to be trained or found, see
    ``utils.runs.digests.identify_run``.
    """
    model = slug(Path(config.model.name).name, r"[^A-Za-z0-9._-]+") or "model"
    method = config.fnmodel.name
    rank = f"-r{config.adapter.rank}" if isinstance(config.adapter, LowRankConfig) else ""
    label = f"{model}-{method}{rank}-s{config.seed}-{_hash(science(config, data))}"
    return Path(config.output.path) / config.source.names[0] / label
