"""ROSA and LoRA adapters for any Hugging Face model.

    model = rosa.inject(AutoModelForCausalLM.from_pretrained("gpt2"), rosa.RosaConfig(rank=0.05))
    resampler = rosa.Resampler(model, optimizer, config)       # and call after_epoch after each epoch

Needs torch, transformers and safetensors only.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosa.checkpoint import export, load_adapter, save_adapter
    from rosa.config import AdapterConfig, LoraConfig, RosaConfig
    from rosa.errors import AdapterError
    from rosa.inject import (
        ParameterReport,
        adapter_layers,
        inject,
        merge,
        merged,
        parameter_report,
        start_adapters,
        unmerge,
        unwrap,
    )
    from rosa.layers import AdapterLayer
    from rosa.methods import register
    from rosa.resampler import Resampler, resample

__version__ = "0.1.0"

__all__ = [
    "AdapterConfig",
    "AdapterError",
    "AdapterLayer",
    "LoraConfig",
    "ParameterReport",
    "Resampler",
    "RosaConfig",
    "adapter_layers",
    "export",
    "inject",
    "load_adapter",
    "merge",
    "merged",
    "parameter_report",
    "register",
    "resample",
    "save_adapter",
    "start_adapters",
    "unmerge",
    "unwrap",
]

# the modules that have these names
_HOMES = ("config", "errors", "inject", "layers", "checkpoint", "methods", "resampler")


class _Package(ModuleType):
    """This package: torch is imported with the first name that needs it, so that settings are checked without it."""

    def __getattr__(self, name: str) -> Any:
        for home in _HOMES if name in __all__ else ():
            module = importlib.import_module(f"{__name__}.{home}")
            if name in vars(module):
                return vars(module)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):  # rosa.inject is the function, not its module
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
