"""Modules that stand in the places of others for a while, with their hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from rosa.errors import AdapterError
from rosa.targets import COMPUTED

# The dictionaries of a module's hooks. They are shared, not copied, so that hooks registered or removed later count.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


class RunsHooksOfBase:
    """A module that runs the hooks of its base module, which get this module.

    Hooks that compute the base's weight (pruning, the old weight_norm and spectral_norm), registered after the
    adaptation, read first what the base alone has. That is an error by name, as it is at the adaptation.
    """

    name: str

    def _refuse_computed(self) -> None:
        parts: dict[str, Any] = vars(self)["_modules"]
        if "weight" in vars(parts.get("base_layer") or parts["base"]):  # else it is a parameter
            raise AdapterError(f"{self.name}: {COMPUTED}")
        raise AttributeError

    weight_mask = weight_g = weight_orig = property(_refuse_computed)


class StandIn(nn.Module):
    """A module that takes the place of an adapter layer for a while (``rosa.disabled``)."""


def share_hooks(stand_in: nn.Module, module: Any) -> None:
    """Make the hooks of ``module``, registered before or after, those of ``stand_in``."""
    for hooks in HOOKS:
        setattr(stand_in, hooks, getattr(module, hooks))
    stand_in._is_full_backward_hook = module._is_full_backward_hook


@contextlib.contextmanager
def replaced_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], others: Mapping[str, nn.Module]
) -> Iterator[None]:
    """Put ``others`` in the places of ``layers`` for a ``with`` block, which may change the training mode of both."""
    try:
        for name, other in others.items():
            model.set_submodule(name, other)
        yield
    finally:
        for name, layer in layers.items():
            if layer.training != others[name].training:  # model.eval() within the block
                layer.train(others[name].training)
            model.set_submodule(name, layer)
