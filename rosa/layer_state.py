"""What an adapter layer does while it is merged, and which states of it, and of an offloaded one, are refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rosa.errors import AdapterError
from rosa.targets import OFFLOADED, is_offloaded


def forward_merged(layer: Any, x: Tensor) -> Tensor:
    """The base module's output. In a training step it warns that nothing but biases gets gradients.

    Raises:
        AdapterError: accelerate offloaded the layer after the merge, by ``state_dict``, which is that before the merge.
    """
    if is_offloaded(layer.base):
        raise AdapterError(
            f"{layer.name}: accelerate offloaded its weight from before the merge: take the model back to memory "
            "(accelerate.hooks.remove_hook_from_submodules(model)), and offload rosa.unwrap(rosa.unmerge(model))"
        )
    if layer.training and torch.is_grad_enabled() and any(p.requires_grad for p in layer.adapter_parameters().values()):
        warnings.warn("a merged layer does not train: first rosa.unmerge(model)", stacklevel=2)  # one text for all
    out: Tensor = layer.base.forward(x)
    return out


def check_in_memory(layers: Iterable[Any]) -> None:
    """Raise AdapterError, with the layer's name, if accelerate has offloaded one."""
    for layer in layers:
        if is_offloaded(layer.base):
            raise AdapterError(f"{layer.name}: {OFFLOADED}")


def guard_state(layer: Any) -> None:
    """Make ``state_dict`` save the layer as it is when it is not merged, and loading refuse what it cannot take."""
    layer.register_state_dict_post_hook(_save_unmerged)
    layer.register_load_state_dict_pre_hook(_check_loadable)
    layer.register_load_state_dict_pre_hook(_note_values)


def _save_unmerged(layer: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The base's values without the change, which A and B hold in the same state."""
    for name, before in (layer._unmerged or {}).items():
        state[f"{prefix}base.{name}"] = before


def _note_values(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A state with all own parameters gives the layer values; one of PEFT's before its first subspace has none."""
    own, number = layer.own_parameters(), state.get(f"{prefix}number")
    sampled = number is None or number.is_meta or int(number) >= 0
    layer.has_values |= bool(own) and sampled and all(f"{prefix}{name}" in state for name in own)


def _check_loadable(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Raise AdapterError if the layer is merged, or if A comes without the values that belong to it.

    That is before anything of the layer is written, also with ``strict=False``. The values: ``needed_with_pair``.
    """
    if layer.merged and any(key.startswith(prefix) for key in state):
        raise AdapterError(f"{layer.name} is merged: call rosa.unmerge(model) before you load values")
    missing = [name for name in layer.needed_with_pair if f"{prefix}{name}" not in state]
    if f"{prefix}A" in state and missing:
        raise AdapterError(
            f"{layer.name}: the state has its A and not {', '.join(missing)}, which resamples change too. Save what "
            "the library saves (rosa.save_adapter, or save_pretrained with PEFT), or all of model.state_dict()"
        )
