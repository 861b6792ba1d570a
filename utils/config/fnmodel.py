"""The types of the configuration's ``fnmodel``, made from the settings classes of the adaptation methods."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from rosa.config import LowRankConfig, option
from rosa.methods import method_names, methods


def _node(name: str, fields: list[tuple[str, Any, dataclasses.Field[Any]]]) -> type:
    """A dataclass of ``fields``. OmegaConf has no literals and unions with containers: they become str and Any."""

    def simple(annotation: Any) -> Any:
        if typing.get_origin(annotation) is typing.Literal:
            return str
        members = typing.get_args(annotation)
        is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
        return Any if is_union and any(typing.get_origin(member) for member in members) else annotation

    copies = []
    for key, annotation, old in fields:
        default = dict(default=old.default) if old.default is not dataclasses.MISSING else {}
        if old.default_factory is not dataclasses.MISSING:
            default = dict(default_factory=old.default_factory)
        copies.append((key, simple(annotation), field(**default, metadata=dict(old.metadata))))
    return dataclasses.make_dataclass(name, copies)


def _typed_fields(config: type) -> list[tuple[str, Any, dataclasses.Field[Any]]]:
    hints = typing.get_type_hints(config)
    return [(f.name, hints[f.name], f) for f in dataclasses.fields(config)]


LAYERS_ONLY = "none-layers"  # full training of some layers only: none with target_modules
NOT_KEYS = ("seed", "modules_to_save")  # the adapter gets the run's seed; what train.py trains has no new head
SHARED = [row for row in _typed_fields(LowRankConfig) if row[0] not in NOT_KEYS]
Params: Any = _node("Params", SHARED)


@dataclass
class FnModelConfig:
    """The keys that all methods share. ``fnmodel_type`` adds a node for each method, with its own keys."""

    name: str = option("rosa", choices=("none", *method_names()))
    params: Params = field(default_factory=Params)

    @property
    def trained_layers(self) -> Any:
        """Of full training, the layers that train, as ``target_modules``; None: everything trains, or an adapter."""
        return self.params.target_modules if self.name == "none" else None

    @property
    def method(self) -> str:
        """The method's name in directories, records and tables."""
        return self.name if self.trained_layers is None else LAYERS_ONLY


@functools.cache
def fnmodel_type() -> Any:
    """``FnModelConfig`` with the methods' own nodes. Imports the methods, and so torch."""
    shared = {f.name for f in dataclasses.fields(LowRankConfig)}
    nodes = {
        name: _node(f"{name}_options", [row for row in _typed_fields(config) if row[0] not in shared])
        for name, (config, _) in methods().items()
    }
    fields = [(name, node, field(default_factory=node)) for name, node in nodes.items()]
    return dataclasses.make_dataclass("FnModelWithMethods", fields, bases=(FnModelConfig,))
