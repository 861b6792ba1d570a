"""Averages of a model's parameters over steps (``AveragedModel``), which have no meaning across a resample."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Collection

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.swa_utils import AveragedModel

from rosa.layers import AdapterLayer

_AVERAGES: weakref.WeakSet[AveragedModel] = weakref.WeakSet()


def _note(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Remember an average when it receives its copy of a model."""
    if isinstance(module, AveragedModel):
        _AVERAGES.add(module)


register_module_module_registration_hook(_note)


def warn_of_averages(layers: Collection[AdapterLayer]) -> None:
    """Warn, once per average, if a resample of ``layers`` comes amid an average of these layers."""
    names = {layer.name for layer in layers}
    for average in list(_AVERAGES):
        averaged = (module for module in average.modules() if isinstance(module, AdapterLayer))
        if average.n_averaged > 0 and any(layer.name in names for layer in averaged):
            _AVERAGES.discard(average)
            warnings.warn(
                f"{type(average).__name__} averages parameters from before and after a resample, which belong to "
                "different subspaces: its model is wrong from now on. Make a new average after each resample, or "
                "average the weights within rosa.merged(model)",
                stacklevel=4,
            )
