"""Adaptation methods: one file each in this folder, registered by name.

A new method is a new file here: a dataclass of settings derived from ``AdapterConfig`` whose ``method`` is
its name, and an ``AdapterLayer`` subclass under ``@register(ItsConfig)``. The settings of the methods that come
with this package stand in ``rosa.config``, where they are read without torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rosa.config import SETTINGS, AdapterConfig

if TYPE_CHECKING:
    from rosa.layers import AdapterLayer

Layer = TypeVar("Layer", bound="type[AdapterLayer]")
_METHODS: dict[str, tuple[type[AdapterConfig], type[AdapterLayer]]] = {}


def register(config: type[AdapterConfig]) -> Callable[[Layer], Layer]:
    """Class decorator: make a layer class the implementation of ``config.method``."""

    def add(layer: Layer) -> Layer:
        if config.method in _METHODS:
            raise ValueError(f"two methods are named {config.method!r}")
        _METHODS[config.method] = (config, layer)
        return layer

    return add


def methods() -> dict[str, tuple[type[AdapterConfig], type[AdapterLayer]]]:
    """Every method by name, in alphabetical order: its settings class and its layer class."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(_METHODS.items()))


def settings() -> dict[str, type[AdapterConfig]]:
    """The settings class of every method by name; imports only the files whose settings ``rosa.config`` lacks."""
    for module in pkgutil.iter_modules(__path__):
        if module.name not in SETTINGS:
            importlib.import_module(f"{__name__}.{module.name}")
    return {**SETTINGS, **{name: config for name, (config, _) in _METHODS.items()}}
