"""The types of the configuration's ``fnmodel``, made from the settings classes of the adaptation methods."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from rosa.methods import method_configs
from rosa.settings import AdapterConfig, LowRankConfig, option

LAYERS_ONLY = "none-layers"  # full training of some layers only: none with target_modules
NOT_KEYS = ("seed", "modules_to_save")  # the adapter gets the run's seed; what train.py trains has no new head


def _node(name: str, config: type, without: Collection[str]) -> type:
    """A dataclass of a method's settings, for OmegaConf: literals become str, unions with containers Any."""

    def simple(annotation: Any) -> Any:
        if typing.get_origin(annotation) is typing.Literal:
            return str
        members = typing.get_args(annotation)
        is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
        return Any if is_union and any(typing.get_origin(member) for member in members) else annotation

    hints, fields = typing.get_type_hints(config), []
    for old in (one for one in dataclasses.fields(config) if one.name not in without):
        hint = hints[old.name]
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else old.metadata.get("choices")
        metadata = {**old.metadata, "choices": choices}
        new = field(default=old.default, default_factory=old.default_factory, metadata=metadata)
        fields.append((old.name, simple(hint), new))
    return dataclasses.make_dataclass(name, fields)


Params: Any = _node("Params", LowRankConfig, NOT_KEYS)


@dataclass
class _Shared:
    """The keys that all methods share."""

    name: str = option("rosa", choices=("none", *method_configs()))
    params: Params = field(default_factory=Params)

    @property
    def trained_layers(self) -> Any:
        """Of full training, the layers that train, as ``target_modules``; None: everything trains, or an adapter."""
        return self.params.target_modules if self.name == "none" else None

    @property
    def method(self) -> str:
        """The method's name in directories, records and tables."""
        return self.name if self.trained_layers is None else LAYERS_ONLY

    def settings_of(self, name: str, **more: Any) -> AdapterConfig:
        """The settings of a method with the values of its keys and of the shared ones."""
        kind = method_configs()[name]
        given = dataclasses.asdict(self.params) | dataclasses.asdict(getattr(self, name)) | more
        known = {f.name for f in dataclasses.fields(kind)}  # not every method has a rank
        return kind(**{key: value for key, value in given.items() if key in known})


_SHARED_KEYS = {f.name for f in dataclasses.fields(LowRankConfig)}
_NODES = {name: _node(name, config, _SHARED_KEYS) for name, config in method_configs().items()}
FnModelConfig: Any = dataclasses.make_dataclass(
    "FnModelConfig", [(name, node, field(default_factory=node)) for name, node in _NODES.items()], bases=(_Shared,)
)
