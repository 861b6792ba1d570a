"""Check that a sweep's overrides are keys of the configuration, with values that it takes.

The configuration is composed once for each choice of config groups (usually once in all), not once per job. In each
group only as many jobs are checked as are needed to see every value of every key: for a matrix of 5 ranks, 3 learning
rates and 4 seeds that is five jobs instead of sixty. Of numbers that an earlier group had too, only the smallest and
the largest are checked again: a limit that depends on another key is exceeded there first.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.config.settings import parse_config, schema
from utils.errors import UserError
from utils.runs.identity import without_effect
from utils.slurm.sweep.quoting import ENVIRONMENT, hydra_value

if TYPE_CHECKING:
    from utils.slurm.sweep.file import Group, Job

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
METHOD_AND_DATA = ("fnmodel.name", "dataset.name")  # they decide which other keys have an effect


def override_problems(groups: Sequence[Group]) -> list[str]:
    """The overrides of train.py that the configuration does not take: one sentence per problem."""
    problems: dict[str, None] = {}  # in order, each once
    seen: set[tuple[str, str]] = set()
    for group in groups:
        for overrides in _witnesses(group, seen):
            for problem in refusals(overrides):
                problems.setdefault(f"group {group.name}: {problem}")
    return list(problems) + _one_run(groups)


def _one_run(groups: Sequence[Group]) -> list[str]:
    """Jobs that are one run, since they differ in keys without effect alone: a sentence per such keys and groups.

    What a search adds is not looked at: nobody can take that out of the file.
    """
    problems: dict[tuple[str, ...], str] = {}
    first: dict[frozenset[tuple[str, str]], tuple[Job, dict[str, str]]] = {}
    for job in (job for group in groups for job in group.jobs if job.trains and not job.follows):
        values = {key.lstrip("+"): hydra_value(value) for key, value in job_overrides(job).items()}
        if values.get("dry_run") == "true":
            continue
        deciding = [(key, value) for key, value in values.items() if key in METHOD_AND_DATA or (CONFIGS / key).is_dir()]
        idle = {key: values[key] for key in values.keys() & _without_effect(tuple(deciding))}
        other, others = first.setdefault(frozenset(values.items() - idle.items()), (job, idle))
        keys = sorted({key for key, _ in idle.items() ^ others.items()})
        if keys:
            problems.setdefault(
                (job.group, other.group, *keys),
                f"group {job.group}: {job.label} and, in group {other.group}, {other.label} are one run, since "
                f"{', '.join(keys)} has no effect there: leave one of them out",
            )
    return list(problems.values())


@functools.cache
def _without_effect(deciding: tuple[tuple[str, str], ...]) -> set[str]:
    """The keys of train, logging and fnmodel without effect on a run's result, given the overrides that decide it."""
    base = _composed(tuple(f"{key}={value}" for key, value in deciding if (CONFIGS / key).is_dir()))
    if isinstance(base, str):
        return set()
    config = base.copy()
    for key, value in deciding:
        if not (CONFIGS / key).is_dir():
            OmegaConf.update(config, key, value, force_add=True)
    try:
        keys = without_effect(parse_config(config))
    except UserError:  # another check reports it
        return set()
    return {key for key in keys if key.startswith(("train.", "logging.", "fnmodel."))}


def _witnesses(group: Group, seen: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """The overrides of a small subset of the group's jobs that covers every (key, value) pair not checked yet.

    A greedy set cover. ``seen`` has the pairs of earlier groups; the group's own pairs are added to it.
    """
    candidates = [job_overrides(job) for job in group.jobs if job.trains]
    pairs = [frozenset((key, hydra_value(value)) for key, value in overrides.items()) for overrides in candidates]
    left = set().union(*pairs) - (seen - _extremes(candidates))
    seen |= set().union(*pairs)
    if candidates and not left:
        yield candidates[0]
    while left:
        best = max(range(len(pairs)), key=lambda index: len(pairs[index] & left))
        left -= pairs[best]
        yield candidates[best]


def _extremes(candidates: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """All (key, value) pairs, but of each key's numbers only the smallest and the largest."""
    values: dict[str, set[Any]] = {}
    for overrides in candidates:
        for key, value in overrides.items():
            values.setdefault(key, set()).add(value if isinstance(value, (int, float)) else hydra_value(value))
    found = set()
    for key, found_values in values.items():
        numbers = [value for value in found_values if not isinstance(value, str)]
        ends = {min(numbers), max(numbers)} if numbers else set()
        found |= {(key, hydra_value(value)) for value in numbers if value in ends}
        found |= {(key, value) for value in found_values if isinstance(value, str)}
    return found


def job_overrides(job: Job) -> dict[str, Any]:
    """The overrides of ``job``; those of a command given as text are read from the text."""
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


def refusals(overrides: dict[str, Any]) -> list[str]:
    """Why train.py does not take these overrides: one sentence per problem."""
    choices = tuple(f"{key}={hydra_value(value)}" for key, value in overrides.items() if (CONFIGS / key).is_dir())
    base = _composed(choices)
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
    """A value in place of an environment variable that only the node knows: the key's present value, else a text."""
    if present is not None:
        return present
    typed = schema()
    try:
        OmegaConf.update(typed, key, "from the environment")
    except OmegaConfBaseException:  # the key takes no text, or does not exist, which another check reports
        return None
    return "from the environment"


@functools.cache
def _composed(choices: tuple[str, ...]) -> DictConfig | str:
    """The configuration with a choice of config groups, or a message if that cannot be composed."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            config = compose("train", overrides=list(choices))
    except HydraException as error:
        return str(error).splitlines()[0]
    OmegaConf.set_struct(config, False)
    return config
