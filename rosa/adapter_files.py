"""Adapter files.

A folder holds ``adapter_config.json`` (method, settings, shape of each layer, the base model's name),
``adapter.safetensors`` (what trains, such as A and B and biases) and, for methods that have them,
``frozen.safetensors`` (what only a resample changes: ROSA's W_f, and a factor that does not train). If the two factors
of W_f − W_0 are known and smaller than W_f, the file holds these, ``left`` (m, r) and ``right`` (r, n). The base model
itself is not saved. Nothing is ever unpickled.

The metadata of ``adapter.safetensors`` has two checksums (``rosa.checksums``): of the layers' description, and of the
matching frozen weights. Files of earlier versions have none and are read without this check. Factors belong to one
base model: the description has a checksum of its W_0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rosa.adapter_description import build_described, check_alike, check_description, describe
from rosa.checksums import (
    base_description,
    check_adapted,
    check_base,
    frozen_checksum,
    layers_checksum,
    remember_base,
    values_checksum,
)
from rosa.errors import AdapterError
from rosa.files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    FOR_PEFT,
    FROZEN_FILE,
    LEFT,
    RIGHT,
    SUBSPACE,
    factor_ranks,
    read_description,
    read_tensors,
    replace_files,
    write_tensors,
)
from rosa.fused import full_precision
from rosa.injection import Model, adapter_layers, check_not_of_peft, install_layers, unmerge
from rosa.kept_base import Pair, cut_to_rank, factors_between, is_rounded
from rosa.layer_state import check_in_memory
from rosa.layers import AdapterLayer, product
from rosa.peft_files import PeftAdapter
from rosa.quantised import check_trainable
from rosa.resampling import RESAMPLER, SubspaceLayer, subspace_number, warn_if_never_resampled
from rosa.saved_modules import find_modules, module_tensors, remember_modules, saved_modules, warn_of_others
from rosa.sharding import gather, gather_all, gathered, is_sharded, on_first_process, reshard, shard_like
from rosa.targets import canonical_names

Tensors = dict[str, Tensor]


def save_adapter(model: nn.Module, folder: str | Path, *, frozen: bool = True, exact: bool = False) -> None:
    """Write the adapter of ``model`` to ``folder``, which is made if missing.

    A loaded adapter computes the same function to the bit, except with the factors of W_f − W_0 (ROSA, ReLoRA): they
    give W_f up to rounding, in float32 within 1e-5 of the logits. They are written where they are smaller than W_f and
    known (``inject`` with ``keep_base=True``, weights of 32 bits), and load into the same base model only. Those of an
    adapter that was loaded from a whole W_f are found by an SVD of each layer. W_f in 16 bits is written whole.

    Every process of a sharded model must call it. A kill leaves the folder as it was, or with files that
    ``load_adapter`` refuses.

    Args:
        frozen: also write the changed base weights, for methods that have them. They change only at a resample: if the
            folder has them from an earlier save with the same ``exact``, give False.
        exact: write W_f itself, so that training goes on to the bit, as the checkpoints of train.py do.

    Raises:
        AdapterError: no adapters, parts that were adapted with other settings than others, or a model of the library
            peft; or ``frozen=False``, and the folder's frozen weights are not those of the model.
    """
    check_not_of_peft(model, "save them by its method save_pretrained")
    layers = adapter_layers(model)
    if not layers:
        raise AdapterError("this model has no adapters to save")
    reshard(model)
    check_in_memory(layers.values())
    check_alike(layers)
    warn_if_never_resampled(layers.values(), RESAMPLER)
    warn_of_others(model, layers, "they are not saved", exact=exact)
    sharded = any(is_sharded(layer.base.weight) for layer in layers.values())
    trained = gather_all(adapter_tensors(layers) | module_tensors(saved_modules(model)))
    rest = gather_all(frozen_tensors(layers, exact=exact))
    description = {**describe(layers), "base": base_description(model, layers)}

    def write() -> None:
        _write(Path(folder), description, subspace_number(layers.values()), trained, rest, frozen)

    if sharded:
        on_first_process(write)
    else:
        write()


def _write(
    folder: Path, description: dict[str, Any], number: int, trained: Tensors, rest: Tensors, frozen: bool
) -> None:
    checksums = {"layers": layers_checksum(description), SUBSPACE: str(number)}
    if rest:
        checksums["frozen"] = values_checksum(rest)
        if not frozen and frozen_checksum(folder / FROZEN_FILE) != checksums["frozen"]:
            raise AdapterError(
                f"{folder / FROZEN_FILE} does not hold the frozen weights of this model: they change at each resample. "
                "Save with frozen=True."
            )
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"peft_type": FOR_PEFT, **description}, indent=2) + "\n"
    files = {
        folder / ADAPTER_FILE: lambda path: write_tensors(path, trained, **checksums),
        folder / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
    }
    if rest and frozen:
        files = {folder / FROZEN_FILE: lambda path: write_tensors(path, rest, frozen=checksums["frozen"]), **files}
    replace_files(files)
    if not rest:
        (folder / FROZEN_FILE).unlink(missing_ok=True)  # left by another method's adapter


def load_adapter(model: Model, folder: str | Path, *, trainable: bool = True, keep_base: bool = True) -> Model:
    """Load an adapter saved by ``save_adapter`` into its base model, in place; adapters are injected if missing.

    The folder is not trusted. A regular expression in its settings is not run: the file lists the layers.

    Args:
        model: the base model, or one with the same adapters. A sharded model must have them already (``inject`` with
            ``start=False`` before ``fully_shard``).
        trainable: False freezes the adapters, for use without training.
        keep_base: see ``inject``. If the folder holds ROSA's W_f whole, all of W_0 is kept, as many numbers as the
            adapted weights. A model that has the adapters already keeps what it kept before.

    Raises:
        AdapterError: a file is missing or damaged, was made for another model or other settings, or the files are of
            different saves; the folder holds the factors of W_f − W_0 for another W_0 than the model's (weights in
            another dtype are not compared); a model of the library peft. The model's values are not changed then.
    """
    check_not_of_peft(model, "load others by its method load_adapter, or merge them first (merge_and_unload)")
    folder = Path(folder)
    description = read_description(folder)
    foreign = PeftAdapter(folder, description) if "peft_type" in description else None
    description = description if foreign is None else foreign.description
    reshard(model)
    present, ranks = adapter_layers(model), {} if foreign else factor_ranks(folder / FROZEN_FILE)
    plain = canonical_names(model)
    keep, by_name = keep_base or bool(ranks), foreign is not None
    built = {} if present else build_described(model, description, by_name=by_name, keep_base=keep)
    check_in_memory(present.values())
    layers = present or {plain[name]: layer for name, layer in built.items()}
    check_description(folder, description, describe(layers))
    modules = find_modules(model, next(iter(layers.values())).config.modules_to_save or ())
    trained = adapter_tensors(layers) | module_tensors(modules)
    if foreign is None:
        values, number = _read_values(folder, description, trained, _frozen_like(layers, ranks))
    else:
        foreign.check_modules(model, modules)
        values, number = foreign.read(trained, layers), 0
    remember_base(layers.values())
    if keep_base and any(layer.kept is not None for layer in layers.values()):
        remember_modules(modules)
    if ranks:
        check_adapted(folder, description["base"], layers)
    check_base(description["base"], base_description(model, layers))
    if trainable:
        check_trainable(model, layers.values())
    if built:
        install_layers(model, built)
    unmerge(model)
    _set_values(layers, modules, values, ranks)
    for layer in layers.values():
        layer.on_load()
        layer.train_adapter(trainable)
        if isinstance(layer, SubspaceLayer):
            layer.number.fill_(number)
        if built and not keep_base:
            layer.kept = None
    for module in modules.values():
        module.requires_grad_(trainable)
    return model


def _read_values(
    folder: Path, description: Mapping[str, Any], trained: Mapping[str, Tensor], frozen: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], int]:
    """The tensors of both files, which must be of one save and fit the layers, and the number of their subspace."""
    values, checksums = read_tensors(folder / ADAPTER_FILE, trained)
    if checksums.get("layers", layers_checksum(description)) != layers_checksum(description):
        raise AdapterError(f"{CONFIG_FILE} and {ADAPTER_FILE} in {folder} are of two different saves: save once more")
    if frozen:
        values |= read_tensors(folder / FROZEN_FILE, frozen)[0]
        if "frozen" in checksums and checksums["frozen"] != frozen_checksum(folder / FROZEN_FILE):
            raise AdapterError(
                f"{FROZEN_FILE} and {ADAPTER_FILE} in {folder} are of two different subspaces: a save was interrupted, "
                "or the files come from two folders. Save once more, with frozen=True."
            )
    number = checksums.get(SUBSPACE, "")
    return values, int(number) if re.fullmatch("[0-9]{1,9}", number) else 0  # earlier versions did not say


@torch.no_grad()
def _set_values(
    layers: Mapping[str, AdapterLayer],
    modules: Mapping[str, nn.Module],
    values: Mapping[str, Tensor],
    ranks: Mapping[str, int],
) -> None:
    """Write what was read into layers that are not merged, and into modules that train whole."""
    for name, layer in layers.items():
        if layer.rewrites_base and layer.kept is not None:
            _keep(layer, (values[f"{name}.{LEFT}"], values[f"{name}.{RIGHT}"]) if name in ranks else None)
    trained = adapter_tensors(layers) | module_tensors(modules)
    for name, target in {**trained, **frozen_tensors(layers, exact=True)}.items():
        if name in values:
            target.copy_(shard_like(values[name], target) if is_sharded(target) else values[name])


def _keep(layer: AdapterLayer, pair: Pair | None) -> None:
    """Prepare a layer for another W_f: keep W_0, or set the weight to the W_f that ``pair`` gives."""
    assert layer.kept is not None
    with gathered(layer), full_precision(layer.base.weight.device):
        weight = layer.weight_mn
        kept = layer.kept.loaded(pair, weight)
        if pair is not None:
            left, right = (factor.to(weight.device) for factor in pair)
            weight.copy_(layer.kept.weight(weight) + product(left, right))
        layer.kept = kept


def adapter_tensors(layers: Mapping[str, AdapterLayer]) -> dict[str, Tensor]:
    """The parameters of each layer that train, by name. They share the model's storage, unless merged."""
    return {
        f"{name}.{key.removeprefix('base.')}": layer.unmerged_bias if key == "base.bias" else parameter.detach()
        for name, layer in layers.items()
        for key, parameter in layer.adapter_parameters().items()
    }


def frozen_tensors(layers: Mapping[str, AdapterLayer], *, exact: bool) -> dict[str, Tensor]:
    """What only a resample changes: base weights of layers whose method rewrites them; fixed factors.

    Args:
        exact: the weights as they are stored; else the factors of W_f − W_0 where they are smaller and known.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if layer.rewrites_base and (pair := None if exact else _smaller_factors(layer)):
            tensors |= {f"{name}.{LEFT}": pair[0], f"{name}.{RIGHT}": pair[1]}
        elif layer.rewrites_base:
            tensors[f"{name}.weight"] = layer.unmerged_weight
        tensors |= {f"{name}.{key}": layer.own_parameters()[key].detach() for key in layer.fixed}
    return tensors


def _smaller_factors(layer: AdapterLayer) -> Pair | None:
    """The factors of W_f − W_0; None if they are not known, or no smaller than the weight."""
    kept, pair = layer.kept, None
    if kept is not None and kept.unfactored and kept.whole is not None and not is_rounded(layer.base.weight):
        weight = gather(layer.unmerged_weight)
        pair = factors_between(kept.whole, weight.T if layer.transposed else weight)
    elif kept is not None and (difference := kept.difference()) is not None:
        pair = cut_to_rank(*difference)
    if pair is None:
        return None
    left, right = pair
    return (left, right) if left.nbytes + right.nbytes < layer.base.weight.nbytes else None


def _frozen_like(layers: Mapping[str, AdapterLayer], ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """Tensors in the shapes and dtypes of what the frozen file must hold; ``ranks`` are those of its factors."""
    tensors = frozen_tensors(layers, exact=True)
    for name, layer in layers.items():
        if layer.rewrites_base and name in ranks:
            weight = tensors.pop(f"{name}.weight")
            dtype, rank = torch.promote_types(weight.dtype, torch.float32), ranks[name]
            tensors[f"{name}.{LEFT}"] = torch.empty(layer.in_features, rank, dtype=dtype, device="meta")
            tensors[f"{name}.{RIGHT}"] = torch.empty(rank, layer.out_features, dtype=dtype, device="meta")
    return tensors
