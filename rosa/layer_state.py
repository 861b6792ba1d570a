"""What ``state_dict`` and ``load_state_dict`` do with an adapter layer that is merged, and with a part of its state."""

from __future__ import annotations

from typing import Any

from rosa.errors import AdapterError


def guard_state(layer: Any) -> None:
    """Make ``state_dict`` save the layer as it is when it is not merged, and loading refuse what it cannot take."""
    layer.register_state_dict_post_hook(_save_unmerged)
    layer.register_load_state_dict_pre_hook(_check_loadable)


def _save_unmerged(layer: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """The base's values without the change, which A and B hold in the same state."""
    for name, before in (layer._unmerged or {}).items():
        state[f"{prefix}base.{name}"] = before


def _check_loadable(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Also with ``strict=False`` raise AdapterError before anything of the layer is written.

    It is merged, or A comes without the values that belong to it (``completes``).
    """
    if layer.merged and any(key.startswith(prefix) for key in state):
        raise AdapterError(f"{layer.name} is merged: call rosa.unmerge(model) before you load values")
    missing = [name for name in layer.completes if f"{prefix}{name}" not in state]
    if f"{prefix}A" in state and missing:
        raise AdapterError(
            f"{layer.name}: the state has its A and not {', '.join(missing)}, which resamples change too. Save what "
            "the library saves (rosa.save_adapter, or save_pretrained with PEFT), or all of model.state_dict()"
        )
