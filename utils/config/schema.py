"""A configuration compared with its typed schema, key by key."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.text import did_you_mean


def leaves(values: Any, typed: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) pairs. A mapping is a value itself where the schema has no group of that name."""
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        node = typed.get(key) if isinstance(typed, DictConfig) and key in typed else None
        if isinstance(value, dict) and isinstance(node, DictConfig):
            found += leaves(value, node, f"{name}.")
        else:
            found.append((name, value))
    return found


def missing_keys(given: Any, typed: DictConfig, prefix: str = "") -> list[str]:
    """A message for each key of the schema that ``given`` lacks, as after ``~key``, which deletes a whole group."""
    found = []
    for name, node in typed.items():
        key = str(name)
        if key not in given:
            found.append(deleted_key(f"{prefix}{key}"))
        elif isinstance(node, DictConfig) and isinstance(given[key], dict):
            found += missing_keys(given[key], node, f"{prefix}{key}.")
    return found


def set_key(typed: DictConfig, key: str, value: Any) -> str | None:
    """Set one dotted key of the typed configuration. Returns what is wrong with it, None if nothing is."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(typed, parent) if parent else typed
    if name not in node:
        return unknown_key(key, [str(known) for known in node])
    if isinstance(node[name], ListConfig) and not isinstance(value, list):
        return f"{key}={value} must be a list: {key}=[{value}]"
    if isinstance(node[name], DictConfig) and not isinstance(value, dict):
        return f"{key}={value} must be a group of keys ({', '.join(map(str, node[name]))})"
    try:
        OmegaConf.update(typed, key, value)
    except OverflowError:
        return f"{key} is a number beyond all floats"
    except OmegaConfBaseException as error:
        if isinstance(value, list):
            return f"{key}={value} is a list: to train with each, python train.py -m {key}={','.join(map(str, value))}"
        return f"{key}={value}: {str(error).splitlines()[0]}"
    return None


def deleted_key(key: str) -> str:
    """The message for a key that the command line has deleted."""
    return f"{key} is missing: ~{key} deletes it together with its overrides; leave that out"


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a dotted key that does not exist; ``known`` are the keys of its group."""
    return f"{key} is not a key; {did_you_mean(key.rpartition('.')[2], known)}"
