"""The configuration as typed objects, and the check of all its keys, in two stages.

``configs/train.yaml`` is the page people read: every key, its default, unit and allowed values. Here the same
keys have types and limits; a test holds the two together. The check has two stages, because what only one adaptation
method knows stands in that method's file, which imports torch: all other keys are checked first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rosa.config import AdapterConfig, LowRankConfig, option, option_problems
from rosa.methods import method_names, methods
from utils.data import DataSource, get_source
from utils.errors import UserError
from utils.fnmodel import FnModelConfig, fnmodel_type
from utils.io.yaml_files import read_yaml
from utils.text import did_you_mean

OPTIMIZER_PARAMETERS = {
    "adamw": ("weight_decay", "betas", "eps"),
    "adam": ("weight_decay", "betas", "eps"),
    "sgd": ("weight_decay", "momentum"),
}


@dataclass
class ModelConfig:
    """The base model."""

    name: str = "gpt2"
    dropout: float | None = option(None, minimum=0, maximum=1)


@dataclass
class DatasetConfig:
    """The data set, and where its files are."""

    name: str = "e2e"
    path: str | None = None
    cache: str | None = None

    def folder(self) -> Path | None:
        """``path`` as a Path, None where it is not set."""
        return Path(self.path).expanduser() if self.path else None


@dataclass
class TrainConfig:
    """How a run trains; ``configs/train.yaml`` has the units."""

    epochs: int = option(5, minimum=0)
    batch_size: int = option(128, minimum=1)
    micro_batch_size: int | None = option(None, minimum=1)
    lr: float = option(1e-3, above=0)
    optimizer: str = option("adamw", choices=tuple(OPTIMIZER_PARAMETERS))
    weight_decay: float | None = option(None, minimum=0)
    betas: list[float] | None = None
    eps: float | None = option(None, above=0)
    momentum: float | None = option(None, minimum=0)
    scheduler: str = option("linear", choices=("linear", "cosine", "constant", "none"))
    warmup_steps: int | None = option(None, minimum=0)
    max_grad_norm: float | None = option(None, above=0)
    loss_on: str | None = option(None, choices=("target", "all"))
    fraction: float = option(1.0, above=0, maximum=1)
    validation_fraction: float = option(1.0, above=0, maximum=1)
    seq_len: int = option(512, minimum=2)
    block_size: int = option(128, minimum=2)
    sort_window: int = option(50, minimum=0)
    precision: str = option("auto", choices=("auto", "fp32", "bf16", "fp16"))
    gradient_checkpointing: bool = False
    device: str = option("auto", choices=("auto", "cpu", "cuda", "mps"))
    compile: bool | str = option("auto", choices=("auto", True, False))
    sharding: str = option("none", choices=("none", "fsdp"))
    save_every: int | None = option(None, minimum=1)
    save_minutes: float | None = option(None, above=0)
    keep_last: bool = True
    skip_nonfinite: bool = False


@dataclass
class OutputConfig:
    """Where runs go."""

    path: str = "runs"


@dataclass
class LoggingConfig:
    """What is logged, and how often."""

    print_freq: int = option(50, minimum=1)
    samples: int = option(2, minimum=0)


@dataclass
class Config:
    """Every setting of a training run."""

    seed: int = option(0, minimum=0)
    runs: int = option(1, minimum=1)
    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    fnmodel: Any = field(default_factory=lambda: fnmodel_type()())
    train: TrainConfig = field(default_factory=TrainConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @functools.cached_property
    def source(self) -> DataSource:
        """The data set. Raises UserError for a name that is none."""
        return get_source(self.dataset.name)

    @functools.cached_property
    def adapter(self) -> AdapterConfig | None:
        """The settings of the adaptation method, None for full fine-tuning."""
        name = self.fnmodel.name
        if name == "none":
            return None
        method = methods()[name][0]
        given = dataclasses.asdict(self.fnmodel.params) | dataclasses.asdict(getattr(self.fnmodel, name))
        known = {f.name for f in dataclasses.fields(method)}  # a method without a rank leaves it out
        return method(**{key: value for key, value in given.items() if key in known}, seed=self.seed)

    def loss_on(self) -> str:
        """Which tokens carry loss: target or all; the data set's own choice where the key is null."""
        return self.train.loss_on or self.source.loss_on


def schema() -> DictConfig:
    """The typed defaults as OmegaConf sees them."""
    return OmegaConf.structured(Config)


def shared_schema() -> DictConfig:
    """``schema`` without the methods' own keys. Needs no torch."""
    return OmegaConf.structured(Config(fnmodel=FnModelConfig()))


def parse_config(given: DictConfig, *, saved: bool = False) -> Config:
    """``given`` as a Config.

    Args:
        saved: of an earlier run, which may lack keys that came later; else ``given`` has every key.

    Raises:
        UserError: unknown or missing keys, wrong types, values that are not allowed; all of them in one message, but
            those of the methods' own keys (``fnmodel.<method>.*``) only when there are no others.
    """
    try:
        values: Any = OmegaConf.to_container(given, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {error}") from None
    shared = values
    if isinstance(values.get("fnmodel"), dict):
        own = {key: value for key, value in values["fnmodel"].items() if key not in method_names()}
        shared = {**values, "fnmodel": own}
    _typed(shared, shared_schema(), saved, config_problems)
    return _typed(values, schema(), saved, method_problems)


def _typed(values: dict[Any, Any], typed: DictConfig, saved: bool, check: Callable[[Config], list[str]]) -> Config:
    """``values`` in the place of the defaults in ``typed``. Raises UserError with all problems, ``check``'s too."""
    problems = [] if saved else _missing(values, typed)
    for key, value in _leaves(values, typed):
        empty = isinstance(value, str) and not value.strip() and not saved
        problem = f"{key} is empty: leave it out for its default" if empty else _set(typed, key, value)
        if problem:
            problems.append(problem)
    config: Any = OmegaConf.to_object(typed)  # keys that were refused keep their defaults here
    problems += check(config)
    if problems:
        raise UserError("the configuration has problems:\n" + "\n".join(f"  - {text}" for text in problems))
    return config


def load_config(path: Path) -> Config:
    """The saved configuration of a run, whose values are plain: they cannot refer to this machine's environment.

    Raises:
        UserError: the file is missing or is not the configuration of a run.
    """
    try:
        given = read_yaml(path)
        if not isinstance(given, dict):
            raise UserError("not a configuration")
        if "${" in str(given):
            raise UserError("a saved configuration is resolved, but this one has ${...} in it")
        return parse_config(OmegaConf.create(given), saved=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: this run has no saved configuration") from None
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {error}") from None


def _leaves(values: Any, typed: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs; a mapping is descended into only where the schema has a node too."""
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        node = typed.get(key) if isinstance(typed, DictConfig) and key in typed else None
        if isinstance(value, dict) and isinstance(node, DictConfig):
            found += _leaves(value, node, f"{name}.")
        else:
            found.append((name, value))
    return found


def _missing(given: Any, typed: DictConfig, prefix: str = "") -> list[str]:
    """What ``given`` lacks of the schema: Hydra deletes a section together with the other overrides of its keys."""
    found = []
    for name, node in typed.items():
        key = str(name)
        if key not in given:
            found.append(deleted_key(f"{prefix}{key}"))
        elif isinstance(node, DictConfig) and isinstance(given[key], dict):
            found += _missing(given[key], node, f"{prefix}{key}.")
    return found


def _set(typed: DictConfig, key: str, value: Any) -> str | None:
    """Set one key of the typed configuration; what is wrong with it, or None."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(typed, parent) if parent else typed
    if name not in node:
        return unknown_key(key, [str(known) for known in node])
    if isinstance(node[name], DictConfig) and not isinstance(value, dict):
        return f"{key}={value} must be a group of keys ({', '.join(map(str, node[name]))})"
    try:
        OmegaConf.update(typed, key, value)
    except OverflowError:
        return f"{key} is a number beyond all floats"
    except OmegaConfBaseException as error:
        return f"{key}={value}: {str(error).splitlines()[0]}"
    return None


def deleted_key(key: str) -> str:
    """What to say of a key that was there and is not."""
    return f"{key} is missing: ~{key} deletes it together with its overrides; leave that out"


def unknown_key(key: str, known: list[str]) -> str:
    """What to say of a dotted key that is none, where its group has the keys ``known``."""
    return f"{key} is not a key; {did_you_mean(key.rpartition('.')[2], known)}"


def config_problems(config: Config) -> list[str]:
    """What is wrong with the values, the methods' own keys aside; reads neither data nor a model."""
    problems = option_problems(config)
    for name in ("model", "dataset", "train", "output", "logging", "fnmodel"):
        problems += option_problems(getattr(config, name), f"{name}.")
    params = dataclasses.asdict(config.fnmodel.params)
    problems += [f"fnmodel.params.{problem}" for problem in LowRankConfig(**params).problems()]
    if (last := config.seed + config.runs - 1) >= 2**63:
        problems.append(f"seed={config.seed} with runs={config.runs}: the last seed must be below 2**63, not {last}")
    try:
        if config.source.packed and config.train.loss_on == "target":
            problems.append(f"train.loss_on=target: {config.dataset.name} has no targets, use all")
        if config.source.needs_path and not config.dataset.path:
            problems.append(f"dataset.path is needed by dataset.name={config.dataset.name}")
    except UserError as error:
        problems.append(str(error))
    return problems + _train_problems(config.train)


def method_problems(config: Config) -> list[str]:
    """What is wrong with the methods' own keys, and with what the chosen method makes of the shared ones."""
    problems = []
    for name in method_names():
        problems += option_problems(getattr(config.fnmodel, name), f"fnmodel.{name}.")
    if not problems and config.adapter is not None:
        problems = [f"fnmodel.name={config.fnmodel.name}: {problem}" for problem in config.adapter.problems()]
    return problems


def _train_problems(train: TrainConfig) -> list[str]:
    problems = []
    for name in ("weight_decay", "betas", "eps", "momentum"):
        takes = OPTIMIZER_PARAMETERS.get(train.optimizer, ())
        if getattr(train, name) is not None and takes and name not in takes:
            problems.append(f"train.{name} is not a parameter of {train.optimizer}, which takes {', '.join(takes)}")
    if train.betas is not None and not (len(train.betas) == 2 and all(0 <= beta < 1 for beta in train.betas)):
        problems.append(f"train.betas={list(train.betas)} must be two numbers in [0, 1)")
    if train.micro_batch_size and train.micro_batch_size > train.batch_size:
        problems.append(f"train.micro_batch_size={train.micro_batch_size} is above train.batch_size={train.batch_size}")
    if train.scheduler == "none" and train.warmup_steps:
        problems.append("train.warmup_steps has no effect with train.scheduler=none: use constant, or leave it out")
    return problems
