"""Adapter files, and export as a plain model.

A folder holds ``adapter_config.json`` (method, settings, shape of each layer), ``adapter.safetensors`` (A, B and
trained biases) and, for methods that change the base weight, ``frozen.safetensors`` (ROSA's W_f). The base
model itself is not saved. Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rosa.config import AdapterConfig
from rosa.inject import (
    AdapterError,
    Model,
    adapter_layers,
    build_layers,
    canonical_name,
    install_layers,
    merged,
    unmerge,
)
from rosa.methods import methods

if TYPE_CHECKING:
    from rosa.layers import AdapterLayer

CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter.safetensors"
FROZEN_FILE = "frozen.safetensors"
FORMAT = 1


def save_adapter(model: nn.Module, folder: str | Path, *, frozen: bool = True) -> None:
    """Write the adapter of ``model`` to ``folder`` (made if missing).

    Args:
        frozen: also write the changed base weights, for methods that have them; False when the caller keeps
            them from an earlier save: they change only at a resample.
    """
    layers = adapter_layers(model)
    if not layers:
        raise AdapterError("this model has no adapters to save")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(adapter_tensors(layers), folder / ADAPTER_FILE)
    if frozen and (rest := frozen_tensors(layers)):
        save_file(rest, folder / FROZEN_FILE)
    text = json.dumps(_description(layers), indent=2)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load_adapter(model: Model, folder: str | Path) -> Model:
    """Load an adapter saved by ``save_adapter`` into its base model, in place; adapters are injected if missing.

    Raises:
        AdapterError: a file is missing or damaged, or was made for another model or other settings. The
            values of the model are then untouched.
    """
    folder = Path(folder)
    description = _read_description(folder)
    present = adapter_layers(model)
    built = {} if present else build_layers(model, adapter_config(description))
    layers = present or {canonical_name(name): layer for name, layer in built.items()}
    here = _description(layers)
    if description["method"] != here["method"]:
        raise AdapterError(f"{folder} is a {description['method']} adapter, the model has {here['method']} adapters")
    saved, expected = description["layers"], here["layers"]
    if saved != expected:
        differing = [name for name in {**saved, **expected} if saved.get(name) != expected.get(name)]
        name = differing[0]
        raise AdapterError(
            f"{folder} is the adapter of another model or of other settings: {len(differing)} layers differ; "
            f"{name} is {saved.get(name, 'absent')} in the file and {expected.get(name, 'absent')} in the model"
        )
    trained, rest = adapter_tensors(layers), frozen_tensors(layers)
    values = _read_tensors(folder / ADAPTER_FILE, trained)
    if rest:
        values |= _read_tensors(folder / FROZEN_FILE, rest)
    if built:
        install_layers(model, built)
    unmerge(model)
    with torch.no_grad():
        for name, target in {**adapter_tensors(layers), **frozen_tensors(layers)}.items():
            target.copy_(values[name])
    for layer in layers.values():
        layer.note_start()
    return model


def export(model: Any, folder: str | Path) -> None:
    """Save as a plain model: adapters merged, loadable by ``from_pretrained`` without this library."""
    with merged(model):
        model.save_pretrained(folder)


def adapter_tensors(layers: dict[str, AdapterLayer]) -> dict[str, Tensor]:
    """A, B and trained biases of each layer, by name; the parameters' own storage."""
    return {
        f"{name}.{key.removeprefix('base.')}": parameter.detach()
        for name, layer in layers.items()
        for key, parameter in layer.adapter_parameters().items()
    }


def frozen_tensors(layers: dict[str, AdapterLayer]) -> dict[str, Tensor]:
    """The base weights, as stored, of the layers whose method changes them."""
    return {f"{name}.weight": layer.unmerged_weight for name, layer in layers.items() if layer.freezes_rest}


def adapter_config(description: dict[str, Any]) -> AdapterConfig:
    """The method's settings from the content of ``adapter_config.json``."""
    method = description["method"]
    if method not in methods():
        raise AdapterError(f"method {method!r} of the saved adapter is not known here: {', '.join(methods())}")
    try:
        return methods()[method][0](**description["config"])
    except TypeError as error:
        raise AdapterError(f"the saved adapter's settings are not those of {method}: {error}") from None


def _description(layers: dict[str, AdapterLayer]) -> dict[str, Any]:
    config = next(iter(layers.values())).config
    return {
        "format": FORMAT,
        "method": config.method,
        "config": dataclasses.asdict(config),
        "layers": {name: layer.description() for name, layer in layers.items()},
    }


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise AdapterError(f"{path} has format {description['format']}, this version reads {FORMAT}")
        if not all(isinstance(description[key], dict) for key in ("config", "layers")):
            raise TypeError("config and layers must be objects")
        return {key: description[key] for key in ("method", "config", "layers")}
    except FileNotFoundError:
        raise AdapterError(f"{folder} holds no adapter: {CONFIG_FILE} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{path} is damaged: {error!r}") from None


def _read_tensors(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, checked against names and shapes."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is missing or damaged: {error}") from None
    wrong = [
        name for name in {**expected, **found}
        if name not in found or name not in expected or found[name].shape != expected[name].shape
    ]  # fmt: skip
    if wrong:
        raise AdapterError(f"{path} does not fit the model: {', '.join(wrong[:3])} differ ({len(wrong)} in all)")
    return found
