"""Checksums in adapter files: whether adapter, frozen weights and base model belong together.

They find an accident, not an attack.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.files import read_checksums
from rosa.kept_base import KeptBase
from rosa.layers import AdapterLayer
from rosa.quantised import quantised_sizes
from rosa.saved_modules import find_modules
from rosa.sharding import gather, is_sharded, shares_memory

SAMPLES = 16  # values of each parameter of the base model that are compared, at least


def layers_checksum(description: Mapping[str, Any]) -> str:
    """The checksum of a saved adapter's method and layers, which the model must share."""
    text = json.dumps([description["method"], description["layers"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def values_checksum(tensors: Mapping[str, Tensor]) -> str:
    """The checksum of the values' bits, a hash of one sum per tensor; the same on every device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1).contiguous()
        size = flat.element_size()
        if flat.storage_offset() * size % 8:
            flat = flat.clone()
        total = flat.view(torch.uint8 if flat.numel() * size % 8 else torch.int64).sum()  # integers wrap on overflow
        digest.update(f"{flat.dtype} {flat.numel()} {int(total)};".encode())
    return digest.hexdigest()[:16]


def frozen_checksum(path: Path) -> str | None:
    """The checksum of the frozen weights in a file; None if there is no such file.

    Raises:
        AdapterError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            recorded = read_checksums(file).get("frozen")
            return recorded or values_checksum({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except Exception as error:  # a damaged file can make the reader raise anything
        raise AdapterError(f"{path} is damaged: {error!s:.200}") from None


def base_description(model: nn.Module, layers: Mapping[str, AdapterLayer]) -> dict[str, Any]:
    """An adapter's base model: its name, and the size and some values of the parameters that the adapter leaves out.

    ``values`` is None if this process does not have all values (on meta, sharded). It leaves quantised weights out, so
    that ``dtype`` is "quantised" if there are any: a plain model is then compared by the number of parameters only.
    """
    own = {id(p) for layer in layers.values() for p in layer.changing_parameters()}
    endings = next(iter(layers.values())).config.modules_to_save or ()
    own |= {id(p) for module in find_modules(model, endings).values() for p in module.parameters()}
    before_merge = {id(layer.base.weight): layer.unmerged_weight for layer in layers.values()}
    before_merge |= {
        id(layer.base.bias): layer.unmerged_bias for layer in layers.values() if layer.base.bias is not None
    }
    quantised = quantised_sizes(model)
    left = [p for p in model.parameters() if id(p) not in own]
    rest = [before_merge.get(id(p), p.detach()) for p in left if id(p) not in quantised]
    values = None
    if not any(p.is_meta or is_sharded(p) for p in rest):
        samples = [p.reshape(-1)[:: max(1, p.numel() // SAMPLES)] for p in rest]
        values = values_checksum({f"{number:06}": sample for number, sample in enumerate(samples)})
    return {
        "name": _name(model),
        "parameters": sum(quantised.get(id(p), p.numel()) for p in left),
        "dtype": "quantised" if quantised else str(rest[0].dtype) if rest else None,
        "values": values,
        "adapted": adapted_checksum(layers),
    }


def remember_base(layers: Iterable[AdapterLayer], *, again: bool = False) -> None:
    """Let each layer that keeps its base's values keep those that training writes over.

    The second call does nothing, except ``again``.

    W_0 in 16 bits is kept whole: resamples round W_f, so that the pairs do not give its difference from W_0. The call
    must come before anything is written. Every process of a sharded model must make it.
    """
    for layer in layers:
        if layer.kept is None or layer.base.weight.is_meta:
            continue
        if again:
            layer.kept = KeptBase()
        if layer.rewrites_base and layer.kept.checksum is None:
            weight = gather(layer.base.weight)
            checksum = f"{weight.dtype} {values_checksum({'weight': weight})}"
            whole = weight.T if layer.transposed else weight
            layer.kept = replace(layer.kept, checksum=checksum).started(whole)
        if layer.trains_bias and layer.kept.bias is None:
            layer.kept = replace(layer.kept, bias=gather(layer.base.bias).to("cpu", copy=True))


def note_base(layer: AdapterLayer, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """A hook of ``load_state_dict``: what the base module of a layer without values holds before it is the base.

    Not so where the state shares the module's memory, and was written into it. Shards keep nothing: every process would
    have to gather them.
    """
    values = dict(layer.base.named_parameters())
    given = {name: state[f"{prefix}base.{name}"] for name in values if f"{prefix}base.{name}" in state}
    written = any(shares_memory(new, values[name]) for name, new in given.items())
    if given and not written and not is_sharded(layer.base.weight):
        remember_base([layer])


def adapted_checksum(layers: Mapping[str, AdapterLayer]) -> str | None:
    """The dtypes and a checksum of W_0 in the layers whose method rewrites it; None if unknown, or without any."""
    found = {name: layer.kept and layer.kept.checksum for name, layer in layers.items() if layer.rewrites_base}
    if not found or None in found.values():
        return None
    dtypes = sorted({str(checksum).partition(" ")[0] for checksum in found.values()})
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode())
    return f"{'+'.join(dtypes)} {digest.hexdigest()[:16]}"


def check_adapted(folder: Path, saved: Mapping[str, Any], layers: Mapping[str, AdapterLayer]) -> None:
    """Check that the layers' base weights are the W_0 to which a folder's factors of W_f − W_0 belong.

    Weights in other dtypes than the saved ones are not compared: they differ by rounding.

    Raises:
        AdapterError: they are not; or the layers do not know their W_0.
    """
    theirs, ours = str(saved.get("adapted")), adapted_checksum(layers)
    if ours is None:
        raise AdapterError(
            f"{folder} holds what changed in the base's weights, and the adapters of this model did not keep them: "
            "load it into the base model itself, or adapt that with keep_base=True"
        )
    if theirs != ours and theirs.partition(" ")[0] == ours.partition(" ")[0]:
        raise AdapterError(
            f"{folder} belongs to another base model ({saved.get('name') or 'without a name'!s:.200}): it holds what "
            "changed in the base's weights, and those of this model have other values"
        )


def check_base(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Warn if the weights outside the adapter differ from those at its save.

    Values are compared only between equal dtypes: other values differ by rounding.
    """
    comparable = saved.get("dtype") == here["dtype"] and None not in (saved.get("values"), here["values"])
    keys = ("parameters", "values") if comparable else ("parameters",)
    if any(key in saved and saved[key] != here[key] for key in keys):
        theirs, ours = (base.get("name") or "without a name" for base in (saved, here))
        warnings.warn(
            f"the adapter was saved with another base model ({theirs!s:.200}) than this one ({ours}): the weights that "
            "it does not hold differ",
            stacklevel=3,
        )


def _name(model: nn.Module) -> str:
    """The hub name of the model's configuration, or the last part of a folder's path; "" without a configuration."""
    for module in model.modules():
        name = getattr(getattr(module, "config", None), "_name_or_path", None)
        if isinstance(name, str):
            return Path(name).name if Path(name).is_dir() else name
    return ""
