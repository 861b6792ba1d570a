"""The configuration as typed objects, and the check of all its keys, before torch is imported.

``configs/train.yaml`` is the page for people; here the same keys have types and limits, and a test compares the two.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rosa.methods import method_configs
from rosa.settings import AdapterConfig, LowRankConfig, option, option_problems
from utils.config.fnmodel import FnModelConfig
from utils.config.schema import leaves, missing_keys, set_key
from utils.config.train import TrainConfig, train_problems
from utils.data import COLUMNS, DataSource, Example, get_source
from utils.errors import UserError
from utils.io.yaml_files import read_yaml

LOGGERS = ("tensorboard", "wandb", "trackio")  # packages, and in small letters classes of utils.runs.loggers


@dataclass
class ModelConfig:
    """The base model."""

    name: str = "gpt2"
    """A hub name, a local folder, or ``tiny`` (bundled)."""
    dropout: float | None = option(None, minimum=0)
    """Below 1. Probability of every dropout of the model; None: the model's own."""
    gguf_file: str | None = None
    """A GGUF file in the folder or repository ``name``, which holds model and tokenizer; None: none."""
    adapter: str | None = None
    """Folder of an adapter that is merged before the training starts; None: none."""


@dataclass
class DatasetConfig:
    """The data set, and where its files are."""

    name: str = "e2e"
    """The name of a data set, or another of its names."""
    path: str | None = None
    """Local folder with a file for each split; None: the hub."""
    cache: str | None = None
    """The hub's cache folder; None: its default."""
    size: int | None = option(None, minimum=1)
    """Pairs of a generated data set; None: its own."""
    book: int = option(0, minimum=0)
    """Which of the generated data sets."""
    prompt: str = COLUMNS[0]
    """The column of prompts in own data."""
    target: str = COLUMNS[1]
    """The column of targets in own data."""

    def folder(self) -> Path | None:
        """``path`` as a Path, None where it is not set."""
        return Path(self.path).expanduser() if self.path else None


@dataclass
class OutputConfig:
    """Where runs go."""

    path: str = "runs"
    """Folder of all runs."""
    search: bool = False
    """Whether the run is a trial of a search, which is not evaluated and not in tables."""


@dataclass
class LoggingConfig:
    """What is logged, and how often."""

    print_freq: int = option(50, minimum=1)
    """Optimizer steps between logging points."""
    samples: int = option(2, minimum=0)
    """Validation prompts to show a generated text for, each epoch."""
    to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """The loggers that show the logging points, besides metrics.jsonl."""


@dataclass
class Config:
    """Every setting of a training run."""

    seed: int = option(0, minimum=0)
    """Decides the order of the data, dropout, and what an adapter chooses at random."""
    runs: int = option(1, minimum=1)
    """Number of seeds to train, a directory each: seed, seed + 1, ..."""
    dry_run: bool = False
    """Print what the run would take in memory and time, from a few steps; keep nothing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    fnmodel: Any = field(default_factory=FnModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @functools.cached_property
    def source(self) -> DataSource:
        """The data set. Raises UserError for an unknown name."""
        dataset = self.dataset
        return get_source(dataset.name, dataset.size, dataset.book, (dataset.prompt, dataset.target))

    @functools.cached_property
    def adapter(self) -> AdapterConfig | None:
        """The settings of the adaptation method, None for full training."""
        name = self.fnmodel.name
        if name == "none":
            return None
        settings: AdapterConfig = self.fnmodel.settings_of(name, seed=self.seed)
        return settings

    def load(self, split: str, *, keep: bool = False) -> list[Example]:
        """The examples of a split. With ``keep`` the next call returns the same list without reading it again.

        Raises:
            UserError: the data cannot be loaded.
        """
        kept = self.__dict__.setdefault("_kept", {})
        if split not in kept:
            kept[split] = self.source.load(split, self.dataset.folder(), self.dataset.cache)
        return kept[split] if keep else kept.pop(split)

    def with_precision(self, precision: str) -> Config:
        """These settings with that ``train.precision``; data that were kept stay so."""
        other = dataclasses.replace(self, train=dataclasses.replace(self.train, precision=precision))
        other.__dict__["_kept"] = self.__dict__.setdefault("_kept", {})
        return other

    def loss_on(self) -> str:
        """Which tokens carry loss: target or all; the data set's own choice where the key is null."""
        return self.train.loss_on or self.source.loss_on


def schema() -> DictConfig:
    """The typed defaults as OmegaConf sees them."""
    return OmegaConf.structured(Config)


def parse_config(given: DictConfig, *, saved: bool = False) -> Config:
    """``given`` as a Config.

    Args:
        saved: whether it is of an earlier run, which may lack keys that were added later; else every key is required.

    Raises:
        UserError: unknown or missing keys, wrong types, values that are not allowed. One message has them all.
    """
    try:
        values: Any = OmegaConf.to_container(given, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {error}") from None
    typed = schema()
    problems = [] if saved else missing_keys(values, typed)
    for key, value in leaves(values, typed):
        empty = isinstance(value, str) and not value.strip() and not saved
        problem = f"{key} is empty: leave it out for its default" if empty else set_key(typed, key, value)
        if problem:
            problems.append(problem)
    config: Any = OmegaConf.to_object(typed)  # keys that were refused keep their defaults here
    problems += config_problems(config)
    if problems:
        raise UserError("the configuration has problems:\n" + "\n".join(f"  - {text}" for text in problems))
    return config


def load_config(path: Path) -> Config:
    """The saved configuration of a run. Its values are plain: none refers to the environment of this machine.

    Raises:
        UserError: the file is missing or is not the configuration of a run.
    """
    try:
        given = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: this run has no saved configuration") from None
    try:
        if not isinstance(given, dict):
            raise UserError("not a configuration")
        if "${" in str(given):
            raise UserError("a saved configuration is resolved, but this one has ${...} in it")
        return parse_config(OmegaConf.create(given), saved=True)
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {error}") from None


def config_problems(config: Config) -> list[str]:
    """Everything wrong with the values. Reads neither data nor a model."""
    problems = option_problems(config)
    for name in ("model", "dataset", "train", "output", "logging", "fnmodel"):
        problems += option_problems(getattr(config, name), f"{name}.")
    problems += _method_problems(config)
    if config.model.dropout is not None and config.model.dropout >= 1:
        problems.append(f"model.dropout={config.model.dropout} must be below 1: it would leave nothing to train")
    if (last := config.seed + config.runs - 1) >= 2**63:
        problems.append(f"seed={config.seed} with runs={config.runs}: the last seed must be below 2**63, not {last}")
    return problems + _logging_problems(config.logging) + _dataset_problems(config) + train_problems(config.train)


def _method_problems(config: Config) -> list[str]:
    """What is wrong with the keys of ``fnmodel``, and with those of the chosen method together."""
    fnmodel, chosen = config.fnmodel, config.fnmodel.name
    problems = [f"fnmodel.params.{text}" for text in LowRankConfig(**vars(fnmodel.params)).problems()]
    for name, kind in method_configs().items():
        problems += option_problems(kind(**vars(getattr(fnmodel, name))), f"fnmodel.{name}.")
    if not problems and chosen in method_configs():
        problems = [f"fnmodel.name={chosen}: {problem}" for problem in fnmodel.settings_of(chosen).problems()]
    return problems


def _logging_problems(logging: LoggingConfig) -> list[str]:
    """What is wrong with the list of loggers."""
    unknown = [name for name in logging.to if name not in LOGGERS]
    if unknown or len(set(logging.to)) < len(logging.to):
        return [f"logging.to={list(logging.to)} must name some of {', '.join(LOGGERS)}, each once at most, or none: []"]
    return []


def _dataset_problems(config: Config) -> list[str]:
    """What does not go with the data set."""
    name, dataset = config.dataset.name, config.dataset
    try:
        source = config.source
    except UserError as error:
        return [str(error)]
    problems = []
    if source.packed and config.train.loss_on == "target":
        problems.append(f"train.loss_on=target: {name} has no targets, use all")
    if source.needs_path and not dataset.path:
        problems.append(f"dataset.path is needed by dataset.name={name}")
    if source.default_size is None and (dataset.size, dataset.book) != (None, 0):
        problems.append(f"dataset.size and dataset.book do not go with {name}, whose pairs are fixed: leave them out")
    columns = (dataset.prompt, dataset.target)
    if not source.takes_columns and columns != COLUMNS:
        problems.append(
            f"dataset.prompt and dataset.target do not go with {name}, whose columns are fixed: leave them out"
        )
    elif len({*columns}) == 1:
        problems.append(f"dataset.prompt and dataset.target both name the column {dataset.prompt}")
    return problems
