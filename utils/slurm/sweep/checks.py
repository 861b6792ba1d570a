"""Check a sweep file's keys and values; report one sentence per problem."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

from utils import text
from utils.slurm.sweep.quoting import expand_environment
from utils.slurm.sweep.resources import resource_problems

SWEEP_KEYS: dict[str, tuple[type, ...]] = {
    "state": (str,),
    "groups": (list,),
    "paralleljobs": (list,),
    "command": (str,),
    "overrides": (dict,),
    "resources": (dict,),
    "preamble": (str, list),
    "max_jobs": (int,),
    "requeue": (int,),
    "save_before": (int,),
}
GROUP_KEYS: dict[str, tuple[type, ...]] = {
    **{key: kinds for key, kinds in SWEEP_KEYS.items() if key not in ("state", "groups")},
    "name": (str,),
    "matrix": (dict, list),
    "after": (str, list),
    "array": (bool,),
    "search": (dict,),
}
SEARCH_KEYS: dict[str, tuple[type, ...]] = {
    "keys": (dict,),
    "seed": (int,),
    "seeds": (list,),
    "factor": (int, float),
    "most": (int,),
}
# These change what a loss means, so that losses under different values cannot be compared.
NOT_SEARCHED = ("train.loss_on", "train.validation_fraction", "train.seq_len", "train.block_size", "model.name")
STATE = "runs/.jobs"  # the folder of the state where the file names none
LARGEST_SWEEP = 100_000  # jobs
LONGEST_SLUG = 200  # characters; a file's name has at most 255
_LEAST = {"max_jobs": 1, "requeue": 0, "save_before": 1, "seed": 0, "most": 0}
_KINDS = {
    dict: "a mapping",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def slug(name: str) -> str:
    """A group's name as ids, file names and SLURM's job names contain it, cut to what a file system takes."""
    return text.slug(name, r"[^A-Za-z0-9_+-]+")[:LONGEST_SLUG]


def names(value: Any) -> list[str]:
    """A text or a list of texts as a list."""
    return [value] if isinstance(value, str) else [str(item) for item in value] if isinstance(value, list) else []


def blocks(matrix: Any) -> list[Any]:
    """The mappings of a matrix, which is one mapping or a list of them."""
    return matrix if isinstance(matrix, list) else [matrix]


def check_document(document: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The problems of the whole file, and those groups that can be expanded in spite of them."""
    problems = _key_problems(document, SWEEP_KEYS, "") + _command_problems(document, "")
    shared = {key: document[key] for key in document if key in SWEEP_KEYS}
    spoilt = _key_problems(shared, SWEEP_KEYS, "") + _command_problems(document, "")
    sound: list[dict[str, Any]] = []
    groups = document.get("groups", [])
    if not isinstance(groups, list):
        return problems, sound
    if not groups and not document.get("paralleljobs"):
        problems.append("there are no jobs: give groups (a list) or paralleljobs (a list of commands)")
    known: dict[str, int] = {}
    for number, node in enumerate(groups, 1):
        if not isinstance(node, dict):
            problems.append(f"group {number} must be a mapping with a name and its jobs")
            continue
        name = node.get("name")
        if not isinstance(name, str) or not slug(name):
            wrong = "is missing" if name is None else f"must be a text with a letter (a to z) or a digit, not {name!r}"
            problems.append(f"group {number}: name {wrong}")
            continue
        if slug(name) in known:
            problems.append(f"groups {known[slug(name)]} and {number} have the same name, {name}")
        known[slug(name)] = number
        own = _group_problems(name, node, groups) + _search_problems(name, node, document)
        problems += own
        if not own and not spoilt:
            sound.append(node)
    if sum(map(_count, sound)) > LARGEST_SWEEP:  # before anything is expanded
        largest = max(sound, key=_count)["name"]
        problems.append(f"group {largest}: with it there are more than {LARGEST_SWEEP} jobs; use several sweep files")
        return problems, []
    return problems, sound


def _count(group: dict[str, Any]) -> int:
    """The number of jobs of a group without problems, or one more if it has ``paralleljobs`` only."""
    combinations = (math.prod(map(len, block.values())) for block in blocks(group.get("matrix", {})))
    search = group.get("search", {"keys": {}, "seeds": []})
    each = math.prod(map(len, search["keys"].values())) + len(search["seeds"])
    return sum(combinations) * each + len(group.get("paralleljobs", []))


def _key_problems(node: dict[str, Any], known: dict[str, tuple[type, ...]], where: str) -> list[str]:
    problems = []
    for key, value in node.items():
        kinds = known.get(key, ())
        fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        if key not in known:
            problems.append(f"{where}{key} is not a key; {text.did_you_mean(key, known)}")
        elif not fits:
            problems.append(f"{where}{key} must be {' or '.join(_KINDS[kind] for kind in kinds)}")
        elif key == "resources":
            problems += [f"{where}resources.{problem}" for problem in resource_problems(value)]
        elif key in _LEAST and value < _LEAST[key]:
            problems.append(f"{where}{key}={value} must be {_LEAST[key]} or more")
    return problems


def _group_problems(name: str, node: dict[str, Any], groups: list[Any]) -> list[str]:
    where = f"group {name}: "
    problems = _key_problems(node, GROUP_KEYS, where) + _command_problems(node, where)
    misspelt = any(key not in GROUP_KEYS for key in node)  # the jobs, perhaps
    if not misspelt and not any(key in node for key in ("matrix", "overrides", "search", "paralleljobs", "command")):
        problems.append(f"{where}has no jobs: give a matrix, overrides, a command or paralleljobs")
    others = [other["name"] for other in groups if isinstance(other, dict) and isinstance(other.get("name"), str)]
    for key in names(node.get("after", [])):
        if key == name:
            problems.append(f"{where}after: {key} is the group itself")
        elif key not in others:
            problems.append(f"{where}after: {key} is not a group; {text.did_you_mean(key, others)}")
    return problems + (_matrix_problems(node["matrix"], where) if "matrix" in node else [])


def _search_problems(name: str, node: dict[str, Any], document: dict[str, Any]) -> list[str]:
    search = node.get("search")
    if not isinstance(search, dict):
        return []
    where = f"group {name}: search."
    problems = _key_problems(search, SEARCH_KEYS, where)
    problems += [f"{where}{key} is missing" for key in ("keys", "seed", "seeds") if key not in search]
    if problems:
        return problems
    matrix = [block for block in blocks(node.get("matrix", {})) if isinstance(block, dict)]
    others = {key for part in (document, node) for key in part.get("overrides") or {}}.union(*matrix)
    for key, values in search["keys"].items():
        if not isinstance(values, list) or not values or any(value in values[:i] for i, value in enumerate(values)):
            problems.append(f"{where}keys.{key} must be a list of different values")
        bare = key.lstrip("+")
        if bare in NOT_SEARCHED or bare.partition(".")[0] in ("dataset", "experiment"):
            problems.append(f"{where}keys.{key}: losses under different values cannot be compared; move it to matrix")
        if key == "seed" or key in set().union(*matrix):
            problems.append(f"{where}keys.{key}: {'give seed and seeds' if key == 'seed' else 'it is in matrix, too'}")
    if not search["keys"]:
        problems.append(f"{where}keys is empty: give the values to try, such as train.lr: [3e-4, 1e-3, 3e-3]")
    seeds = search["seeds"]
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        problems.append(f"{where}seeds must be a list of different whole numbers")
    if search["seed"] in seeds:
        problems.append(
            f"{where}seeds has the search's own seed, {search['seed']}: settings chosen with a seed favour it"
        )
    if search.get("factor", 2) <= 1:
        problems.append(f"{where}factor={search['factor']} must be above 1")
    problems += [f"group {name}: {key} is set by the search" for key in ("seed", "runs") if key in others]
    return problems + ([f"group {name}: paralleljobs cannot be searched"] if "paralleljobs" in node else [])


def _command_problems(node: dict[str, Any], where: str) -> list[str]:
    commands = node.get("paralleljobs")
    if not isinstance(commands, list):
        return []
    if not commands:
        return [f"{where}has no jobs: paralleljobs is empty"]
    bad = [command for command in commands if not isinstance(command, str) or not command.strip()]
    return [f"{where}paralleljobs: {command!r} is not a command" for command in bad]


def _matrix_problems(matrix: Any, where: str) -> list[str]:
    if not isinstance(matrix, (dict, list)):
        return []
    if not matrix or {} in blocks(matrix):
        return [f"{where}has no jobs: its matrix is empty"]
    problems = []
    for block in blocks(matrix):
        if not isinstance(block, dict):
            problems.append(f"{where}matrix: {block!r} is not a mapping of overrides to lists")
            continue
        for key, values in block.items():
            if not isinstance(values, list):
                problems.append(f"{where}matrix.{key} must be a list of values (a single value goes to overrides)")
            elif not values:
                problems.append(f"{where}has no jobs: matrix.{key} is an empty list")
    return problems


def state_folder(document: dict[str, Any], problems: list[str]) -> Path:
    """The folder of the sweep's state; what is wrong with it is added to ``problems``."""
    folder = Path()
    try:
        folder = Path(expand_environment(str(document.get("state", STATE)))).expanduser().absolute()
        with contextlib.suppress(FileNotFoundError):  # it is made later
            os.stat(f"{folder}/")
    except KeyError as error:
        problems.append(f"state={document['state']}: {error.args[0]} is not set in the environment")
    except (OSError, ValueError, RuntimeError) as error:  # a file in its place, a name too long, NUL, ~nobody
        problems.append(f"state={str(document['state'])[:100]!r} is no folder: {' '.join(str(error).split())[:100]}")
    return folder
