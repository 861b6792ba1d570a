"""Adaptation methods: one file each in this folder, registered by name.

A new method is a new file here, named as the method: a dataclass of settings derived from ``AdapterConfig``
(``LowRankConfig`` with a rank), and under ``@register(ItsConfig)`` a subclass of ``AdapterLayer`` (``LowRankLayer``
with a pair). Its own settings get a node in ``configs/train.yaml``, and a case in ``tests/rosa/cases.py`` tests it.
Nothing else knows it by name: tables and figures take its label, order and colour from its settings class.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rosa.config import AdapterConfig
from rosa.registry import Registry

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
def presentation(name: str) -> dict[str, Any]:
    """``label``, ``order`` and ``colour`` of a method, if its settings class has them; {} for an unknown name.

    They are read from the text of the method's file: importing it would import torch, which takes seconds, and a table
    needs nothing else of the method.
    """
    spec = importlib.util.find_spec(f"{__name__}.{name}") if name in method_names() else None
    if spec is None or spec.origin is None:
        return {}
    return {
        node.target.id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
        if isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name)
        if node.target.id in ("label", "order", "colour")
    }
