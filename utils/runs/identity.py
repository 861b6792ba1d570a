"""The identity of a run: the settings that change its result, and the directory that is named after them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import operator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rosa.methods import method_names
from rosa.settings import LowRankConfig
from utils.config.settings import Config, schema
from utils.config.train import DEFAULT_DECAY
from utils.io.yaml_files import dotted
from utils.runs.provenance import COSTS
from utils.runs.run import ADAPTER
from utils.text import slug

# Groups and keys that do not change the result of a run: with another value the same run continues.
WITHOUT_EFFECT = (
    "runs",
    "dry_run",
    "output",
    "logging",
    "dataset.path",
    "dataset.cache",
    "dataset.prompt",  # the digest of the data covers both columns
    "dataset.target",
    *(f"train.{key}" for key in COSTS),
    "train.cache_folder",
    "train.device",
    "train.save_every",
    "train.save_minutes",
    "train.keep_last",
    "train.skip_nonfinite",  # matters only at steps that otherwise end the run
)

OF_RESAMPLES = ("every", "optimizer_state", "pruned", "rewarm_steps")  # a method's keys that only resamples read


def science(config: Config, inputs: dict[str, str] | None = None) -> dict[str, Any]:
    """The settings that change the result, as plain values, with aliases resolved and without keys that have no effect.

    Args:
        inputs: digests of what no setting identifies (``identifying`` in ``utils.runs.inputs``).
    """
    values, train = dataclasses.asdict(config), config.train
    if inputs:
        values["inputs"] = inputs
        values["model"]["adapter"] = inputs.get(ADAPTER)
    decay = DEFAULT_DECAY[train.optimizer] if train.weight_decay is None else train.weight_decay
    if not decay or config.fnmodel.rosa.start == "zero":
        values["fnmodel"]["rosa"]["decay"] = False  # the key has no effect
    for key in WITHOUT_EFFECT:
        group, name = _place(values, key)
        del group[name]
    if config.dataset.size == config.source.default_size:
        values["dataset"]["size"] = None
    source = config.source
    values["dataset"]["name"] = source.names[0]
    values["train"]["loss_on"] = config.loss_on()
    del values["train"]["seq_len" if source.packed else "block_size"]
    for method in method_names():
        if method != config.fnmodel.name:
            del values["fnmodel"][method]
    adapter, params = config.adapter, values["fnmodel"]["params"]
    if adapter is not None:
        params["bias"] = "adapted" if adapter.trains_bias else "none"
        params["target_modules"] = adapter.target_modules
        if not isinstance(adapter, LowRankConfig):
            del params["rank"]
    elif config.fnmodel.trained_layers is not None:
        layers = config.fnmodel.trained_layers  # the order of a list is without effect
        values["fnmodel"]["params"] = {"target_modules": layers if isinstance(layers, str) else sorted(set(layers))}
    else:
        del values["fnmodel"]["params"]
    return values


def without_effect(config: Config) -> set[str]:
    """The keys that ``science`` leaves out of a run of this method and data set, whatever their values."""
    left_out = dotted(dataclasses.asdict(config)).keys() - dotted(science(config)).keys()
    return left_out - {"fnmodel.params.target_modules"}  # all layers of a full training


def unread_keys(config: Config) -> list[str]:
    """The keys of method and data that are not at their defaults, though this run does nothing with them."""
    given, defaults = dotted(dataclasses.asdict(config)), dotted(OmegaConf.to_container(schema()))
    never = getattr(config.adapter, "level", None) == "never"
    of_resamples = {f"fnmodel.{config.fnmodel.name}.{key}" for key in OF_RESAMPLES} if never else set()
    unread = {key for key in without_effect(config) if not key.startswith(WITHOUT_EFFECT)} | of_resamples
    return [key for key, value in given.items() if key in unread and value != defaults[key]]


def _place(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The group of ``values`` that holds a dotted key, and the key's name in it."""
    *groups, name = key.split(".")
    return functools.reduce(operator.getitem, groups, values), name


def _hash(values: dict[str, Any]) -> str:
    """A short hash. Keys that are null do not count, so that a new key with that default names no other directory."""
    text = json.dumps({key: value for key, value in dotted(values).items() if value is not None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def group_hash(config: Config, inputs: dict[str, str] | None = None) -> str:
    """The hash that runs share if only their seeds differ."""
    values = science(config, inputs)
    del values["seed"]
    return _hash(values)


def run_directory(config: Config, inputs: dict[str, str] | None = None) -> Path:
    """``<output.path>/<dataset>/<model>-<method>-r<rank>-s<seed>-<hash>``; the label is for people.

    A method without a rank has no ``-r<rank>``. For a run that is to be trained or found, see ``utils.runs.inputs``.
    """
    values = science(config, inputs)
    if config.output.search:  # a trial is no result, so that the same settings must be trained again for one
        values["search"] = True
    model = slug(Path(config.model.name).name, r"[^A-Za-z0-9._-]+") or "model"
    rank = f"-r{config.adapter.rank}" if isinstance(config.adapter, LowRankConfig) else ""
    label = f"{model}-{config.fnmodel.method}{rank}-s{config.seed}-{_hash(values)}"
    return Path(config.output.path).expanduser() / config.source.names[0] / label
