"""What ``adapter_config.json`` says of a model's adapters, and new layers made as it says.

method      its name
config      the settings with which the model was adapted
layers      for each adapted layer its shape and what differs between layers, such as the rank and LoRA's scale
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rosa.errors import AdapterError
from rosa.files import FORMAT
from rosa.injection import build_layers
from rosa.layers import AdapterLayer, LowRankLayer
from rosa.methods import methods
from rosa.settings import AdapterConfig


def describe(layers: Mapping[str, AdapterLayer]) -> dict[str, Any]:
    """The description of a model's adapters, as JSON values."""
    config = next(iter(layers.values())).config
    return {
        "format": FORMAT,
        "method": config.method,
        "config": dataclasses.asdict(config),
        "layers": {name: layer.description() for name, layer in layers.items()},
    }


def check_alike(layers: Mapping[str, AdapterLayer]) -> None:
    """Raise AdapterError if the layers were adapted in parts, with settings that differ in more than an int rank."""
    found = set()
    for config in (layer.config for layer in layers.values()):
        own_rank = {"rank": None} if isinstance(getattr(config, "rank", None), int) else {}
        found.add(str((config.method, dataclasses.asdict(config) | own_rank)))
    if len(found) > 1:
        raise AdapterError(
            "parts of this model were adapted with other settings than others, and a folder holds one: save each part "
            "by itself, as save_adapter(model.encoder, folder)"
        )


def adapter_config(description: Mapping[str, Any]) -> AdapterConfig:
    """The method's settings in the content of ``adapter_config.json``."""
    method = description["method"]
    if method not in methods():
        raise AdapterError(f"method {method!r:.50} of the saved adapter is not known here: {', '.join(methods())}")
    kind = methods()[method][0]
    try:
        return kind(**description["config"])
    except TypeError as error:
        raise AdapterError(f"the saved adapter's settings are not those of {method}: {error}") from None


def build_described(
    model: nn.Module, description: Mapping[str, Any], *, by_name: bool, keep_base: bool
) -> dict[str, AdapterLayer]:
    """New layers as the description says, by module name, without values; the model is not changed.

    Ranks and scales are those of each layer in it, which may differ (adapters of the library peft).

    Args:
        by_name: adapt the layers that it lists, instead of those that its ``target_modules`` matches. Always so where
            that is a regular expression, which is not run.
        keep_base: see ``rosa.inject``.
    """
    config, listed = adapter_config(description), description["layers"]
    names = listed if by_name or isinstance(config.target_modules, str) else None
    ranks = {name: layer["rank"] for name, layer in listed.items() if "rank" in layer}
    layers = build_layers(model, config, names, ranks=ranks, keep_base=keep_base)
    for layer in layers.values():
        scale = listed.get(layer.name, {}).get("scale")
        if isinstance(layer, LowRankLayer) and isinstance(scale, float):
            layer.scale = scale
    return layers


def check_description(folder: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise AdapterError unless a saved adapter has the layers of this model."""
    if saved["method"] != here["method"]:
        raise AdapterError(f"{folder} is a {saved['method']:.50} adapter, the model has {here['method']} adapters")
    theirs, ours = saved["layers"], here["layers"]
    if theirs != ours:
        differing = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        name = differing[0]
        raise AdapterError(
            f"{folder} is the adapter of another model or of other settings: {len(differing)} layers differ; "
            f"{name:.200} is {theirs.get(name, 'absent')!s:.200} in the file and {ours.get(name, 'absent')} in the "
            "model"
        )
