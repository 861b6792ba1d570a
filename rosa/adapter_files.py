"""Adapter files, and export as a plain model.

A folder holds ``adapter_config.json`` (method, settings, shape of each layer, the base model's name),
``adapter.safetensors`` (what trains, such as A and B and biases) and, for methods that have them,
``frozen.safetensors`` (what only a resample changes: ROSA's W_f, and a factor that does not train). The base model
itself is not saved. Nothing is ever unpickled.

The metadata of ``adapter.safetensors`` has two checksums (``rosa.checksums``): of the layers' description, and of the
matching frozen weights. Files of earlier versions have none and are read without this check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rosa.checksums import base_description, check_base, frozen_checksum, layers_checksum, values_checksum
from rosa.config import AdapterConfig
from rosa.errors import AdapterError
from rosa.files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    FORMAT,
    FROZEN_FILE,
    read_description,
    read_tensors,
    replace_files,
    write_tensors,
)
from rosa.injection import (
    Model,
    adapter_layers,
    build_layers,
    install_layers,
    layers_in_place,
    merged,
    unmerge,
    without_adapters,
)
from rosa.layers import AdapterLayer
from rosa.methods import methods
from rosa.sharding import gather, is_sharded, on_first_process, reshard, shard_like
from rosa.targets import canonical_names


def save_adapter(model: nn.Module, folder: str | Path, *, frozen: bool = True) -> None:
    """Write the adapter of ``model`` to ``folder``, which is made if missing.

    Every process of a sharded model must call it. A kill leaves the folder as it was, or with files that
    ``load_adapter`` refuses.

    Args:
        frozen: also write the changed base weights, for methods that have them. They change only at a resample: if the
            folder has them from an earlier save, give False.

    Raises:
        AdapterError: no adapters; or ``frozen=False``, and the folder's frozen weights are not those of the model.
    """
    layers = adapter_layers(model)
    if not layers:
        raise AdapterError("this model has no adapters to save")
    reshard(model)
    sharded = any(is_sharded(layer.base.weight) for layer in layers.values())
    trained, rest = _whole(adapter_tensors(layers)), _whole(frozen_tensors(layers))
    description = {**_description(layers), "base": base_description(model, layers)}

    def write() -> None:
        _write(Path(folder), description, trained, rest, frozen)

    if sharded:
        on_first_process(write)
    else:
        write()


def _write(
    folder: Path, description: dict[str, Any], trained: dict[str, Tensor], rest: dict[str, Tensor], frozen: bool
) -> None:
    checksums = {"layers": layers_checksum(description)}
    if rest:
        checksums["frozen"] = values_checksum(rest)
        if not frozen and frozen_checksum(folder / FROZEN_FILE) != checksums["frozen"]:
            raise AdapterError(
                f"{folder / FROZEN_FILE} does not hold the frozen weights of this model: they change at each resample. "
                "Save with frozen=True."
            )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(description, indent=2) + "\n"
    files = {
        folder / ADAPTER_FILE: lambda path: write_tensors(path, trained, **checksums),
        folder / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
    }
    if rest and frozen:
        files = {folder / FROZEN_FILE: lambda path: write_tensors(path, rest, frozen=checksums["frozen"]), **files}
    replace_files(files)
    if not rest:
        (folder / FROZEN_FILE).unlink(missing_ok=True)  # left by another method's adapter


def load_adapter(model: Model, folder: str | Path, *, trainable: bool = True) -> Model:
    """Load an adapter saved by ``save_adapter`` into its base model, in place; adapters are injected if missing.

    The folder is not trusted. A regular expression in its settings is not run: the file lists the layers.

    Args:
        model: the base model, or one with the same adapters. A sharded model must have them already (``inject`` with
            ``start=False`` before ``fully_shard``).
        trainable: False freezes the adapters, for use without training.

    Raises:
        AdapterError: a file is missing or damaged, was made for another model or other settings, or the files are of
            different saves. The values of the model are not changed then.
    """
    folder = Path(folder)
    description = read_description(folder)
    reshard(model)
    present = adapter_layers(model)
    plain = canonical_names(model)
    built = {} if present else _build(model, description)
    layers = present or {plain[name]: layer for name, layer in built.items()}
    _check_description(folder, description, _description(layers))
    values, checksums = read_tensors(folder / ADAPTER_FILE, adapter_tensors(layers))
    if checksums.get("layers", layers_checksum(description)) != layers_checksum(description):
        raise AdapterError(f"{CONFIG_FILE} and {ADAPTER_FILE} in {folder} are of two different saves: save once more")
    if rest := frozen_tensors(layers):
        frozen = read_tensors(folder / FROZEN_FILE, rest)[0]
        if "frozen" in checksums and checksums["frozen"] != frozen_checksum(folder / FROZEN_FILE):
            raise AdapterError(
                f"{FROZEN_FILE} and {ADAPTER_FILE} in {folder} are of two different subspaces: a save was interrupted, "
                "or the files come from two folders. Save once more, with frozen=True."
            )
        values |= frozen
    check_base(description["base"], base_description(model, layers))
    if built:
        install_layers(model, built)
    unmerge(model)
    with torch.no_grad():
        for name, target in {**adapter_tensors(layers), **frozen_tensors(layers)}.items():
            target.copy_(shard_like(values[name], target) if is_sharded(target) else values[name])
    for layer in layers.values():
        layer.on_load()
        if not trainable:
            layer.train_adapter(False)
    return model


def export(model: Any, folder: str | Path) -> None:
    """Save as a plain model: adapters merged, loadable by ``from_pretrained`` without this library.

    The weights from before the merge are kept in an unnamed file in ``folder``, not in memory, and restored to the bit.
    Every process of a sharded model must call this; the first one gathers the whole model on its CPU.
    """
    layers = layers_in_place(model)
    if any(is_sharded(layer.base.weight) for layer in layers.values()):
        with merged(model):
            state = _whole(model.state_dict(keep_vars=True))
            on_first_process(lambda: model.save_pretrained(folder, state_dict=state))
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with _merged_in_place(layers.values(), Path(folder)), without_adapters(model):
        model.save_pretrained(folder)


@contextlib.contextmanager
def _merged_in_place(layers: Iterable[AdapterLayer], folder: Path) -> Iterator[None]:
    """Merge the layers within a ``with`` block; a file keeps their previous weights and biases."""
    changing = [layer for layer in layers if not layer.merged]
    with tempfile.TemporaryFile(dir=folder) as file:
        for layer in changing:
            for values in layer.base.parameters():
                file.write(_bytes(values.detach().contiguous().cpu()))
        file.flush()
        try:
            for layer in changing:
                layer.merge(keep=False)
            yield
        finally:
            file.seek(0)
            for layer in changing:
                for values in layer.base.parameters():
                    before = torch.empty_like(values, device="cpu", memory_format=torch.contiguous_format)
                    if file.readinto(_bytes(before)) != before.nbytes:
                        raise AdapterError(f"{layer.name}: its weight could not be read back from {folder}")
                    values.detach().copy_(before)


def _bytes(tensor: Tensor) -> Any:
    return tensor.view(torch.uint8).numpy()


def adapter_tensors(layers: Mapping[str, AdapterLayer]) -> dict[str, Tensor]:
    """The parameters of each layer that train, by name. They share the model's storage, unless merged."""
    return {
        f"{name}.{key.removeprefix('base.')}": layer.unmerged_bias if key == "base.bias" else parameter.detach()
        for name, layer in layers.items()
        for key, parameter in layer.adapter_parameters().items()
    }


def frozen_tensors(layers: Mapping[str, AdapterLayer]) -> dict[str, Tensor]:
    """What only a resample changes: base weights, as stored, of layers whose method rewrites them; fixed factors."""
    weights = {f"{name}.weight": layer.unmerged_weight for name, layer in layers.items() if layer.rewrites_base}
    return weights | {
        f"{name}.{key}": layer.own_parameters()[key].detach() for name, layer in layers.items() for key in layer.fixed
    }


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors; sharded ones gathered one after another, with values on the first process only, on its CPU."""
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if is_sharded(tensor) and id(tensor) not in found:
            values = gather(tensor)
            first = torch.distributed.get_rank() == 0
            found[id(tensor)] = values.cpu() if first else values.new_empty(0)
    return {name: found.get(id(tensor), tensor) for name, tensor in tensors.items()}


def adapter_config(description: Mapping[str, Any]) -> AdapterConfig:
    """The method's settings in the content of ``adapter_config.json``."""
    method = description["method"]
    if method not in methods():
        raise AdapterError(f"method {method!r:.50} of the saved adapter is not known here: {', '.join(methods())}")
    try:
        return methods()[method][0](**description["config"])
    except TypeError as error:
        raise AdapterError(f"the saved adapter's settings are not those of {method}: {error}") from None


def _build(model: nn.Module, description: Mapping[str, Any]) -> dict[str, AdapterLayer]:
    """New layers as the file describes them."""
    config = adapter_config(description)
    return build_layers(model, config, description["layers"] if isinstance(config.target_modules, str) else None)


def _description(layers: Mapping[str, AdapterLayer]) -> dict[str, Any]:
    config = next(iter(layers.values())).config
    return {
        "format": FORMAT,
        "method": config.method,
        "config": dataclasses.asdict(config),
        "layers": {name: layer.description() for name, layer in layers.items()},
    }


def _check_description(folder: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
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
