"""Are a sweep's overrides keys of the configuration, with values it takes?

The configuration is composed once for each choice of config groups (usually once in all), not once a job. In
each group of jobs as many jobs are checked in full as are needed to see every value of every key: a matrix of
5 ranks, 3 learning rates and 4 seeds takes five, not sixty. Of numbers that another group had too only the least
and the greatest are looked at again, since a limit set by another key is passed there first.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.config import parse_config, schema
from utils.errors import UserError
from utils.slurm.sweep.file import Group, Job
from utils.slurm.sweep.quoting import ENVIRONMENT, hydra_value

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def override_problems(groups: Sequence[Group]) -> list[str]:
    """Every override of train.py that the configuration does not take, a sentence each."""
    problems: dict[str, None] = {}  # in order, each once
    composed: dict[tuple[str, ...], DictConfig | str] = {}
    seen: set[tuple[str, str]] = set()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        for group in groups:
            for overrides in _witnesses(group, seen):
                for problem in _problems(overrides, composed):
                    problems.setdefault(f"group {group.name}: {problem}")
    return list(problems)


def _witnesses(group: Group, seen: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Overrides of few jobs that together have every (key, value) of the group's jobs that is to be looked at.

    ``seen``: pairs of the groups before; the group's own are added.
    """
    candidates = [job_overrides(job) for job in group.jobs if "train.py" in job.command]
    pairs = [frozenset((key, hydra_value(value)) for key, value in item.items()) for item in candidates]
    left = set().union(*pairs) - (seen - _extremes(candidates))
    seen |= set().union(*pairs)
    if candidates and not left:
        yield candidates[0]
    while left:
        best = max(range(len(pairs)), key=lambda index: len(pairs[index] & left))
        left -= pairs[best]
        yield candidates[best]


def _extremes(candidates: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """All pairs but the numbers that are neither their key's least nor its greatest."""
    values: dict[str, set[Any]] = {}
    for item in candidates:
        for key, value in item.items():
            values.setdefault(key, set()).add(value if isinstance(value, (int, float)) else hydra_value(value))
    found = set()
    for key, those in values.items():
        numbers = [value for value in those if not isinstance(value, str)]
        ends = {min(numbers), max(numbers)} if numbers else set()
        found |= {(key, hydra_value(value)) for value in numbers if value in ends}
        found |= {(key, value) for value in those if isinstance(value, str)}
    return found


def job_overrides(job: Job) -> dict[str, Any]:
    """The overrides of ``job``, read from its text where it was given as one."""
    if job.overrides:
        return job.overrides
    try:
        words = shlex.split(job.command)
    except ValueError:
        return {}
    found = {}
    for word in words[next((i for i, word in enumerate(words) if word.endswith("train.py")), len(words)) + 1 :]:
        key, equals, text = word.partition("=")
        if not equals or key.startswith(("-", "hydra.")):
            continue
        found[key] = text if ENVIRONMENT.search(text) else _parsed(word)
    return found


def _parsed(word: str) -> Any:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return word.partition("=")[2]
    return None if override.is_sweep_override() else override.value()


def _problems(overrides: dict[str, Any], composed: dict[tuple[str, ...], DictConfig | str]) -> list[str]:
    choices = tuple(f"{key}={hydra_value(value)}" for key, value in overrides.items() if (CONFIGS / key).is_dir())
    if choices not in composed:
        composed[choices] = _composed(choices)
    base = composed[choices]
    if isinstance(base, str):
        return [base]
    config = base.copy()
    for key, value in overrides.items():
        key = key.lstrip("+")
        if (CONFIGS / key).is_dir():
            continue
        try:
            if isinstance(value, str) and ENVIRONMENT.search(value):
                value = _stand_in(key, OmegaConf.select(config, key))
            OmegaConf.update(config, key, value, force_add=True)
        except OmegaConfBaseException as error:
            return [f"{key}: {str(error).splitlines()[0]}"]
    try:
        parse_config(config)
    except UserError as error:
        lines = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
        return lines or [str(error)]
    return []


def _stand_in(key: str, present: Any) -> Any:
    """A value for what only the node knows: what the key has, or some text where it has none and takes texts."""
    if present is not None:
        return present
    typed = schema()
    try:
        OmegaConf.update(typed, key, "from the environment")
    except OmegaConfBaseException:  # not a text, or no key, which is found out elsewhere
        return None
    return "from the environment"


def _composed(choices: Sequence[str]) -> DictConfig | str:
    """The configuration under a choice of config groups, or what is wrong with the choice."""
    try:
        config = compose("train", overrides=list(choices))
    except HydraException as error:
        return str(error).splitlines()[0]
    OmegaConf.set_struct(config, False)
    return config
