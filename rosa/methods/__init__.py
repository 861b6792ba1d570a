"""Adaptation methods: one file each in this folder, registered by name.

A new method is a new file here, named as the method: a dataclass of settings derived from ``AdapterConfig``
(``LowRankConfig`` with a rank), and under ``@register(ItsConfig)`` a subclass of ``AdapterLayer`` (``LowRankLayer``
with a pair). Its own settings get a node in ``configs/train.yaml``, and a case in ``tests/rosa/cases.py`` tests it.
Nothing else knows it by name: tables and figures take its label, order and colour from its settings class. The
settings of the library's methods are in ``rosa.settings``, so that they are known without torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from rosa.registry import Registry
from rosa.settings import METHODS, AdapterConfig

if TYPE_CHECKING:
    from rosa.layers import AdapterLayer

Layer = TypeVar("Layer", bound="type[AdapterLayer]")
_METHODS: Registry[tuple[type[AdapterConfig], type[AdapterLayer]]] = Registry(__name__, "method")


def register(config: type[AdapterConfig]) -> Callable[[Layer], Layer]:
    """Class decorator: make a layer class the implementation of ``config.method``."""

    def add(layer: Layer) -> Layer:
        _METHODS.add((config, layer), config.method)
        return layer

    return add


def methods() -> dict[str, tuple[type[AdapterConfig], type[AdapterLayer]]]:
    """Every method by name, in alphabetical order: its settings class and its layer class. Imports torch."""
    return _METHODS.all()


def method_names() -> list[str]:
    """The names of all methods, in alphabetical order; imports none of them."""
    return sorted(_METHODS.names())


@functools.cache
def method_configs() -> dict[str, type[AdapterConfig]]:
    """The settings class of every method by name, in alphabetical order. Imports torch for methods of your own only."""
    return {name: METHODS.get(name) or methods()[name][0] for name in method_names()}
