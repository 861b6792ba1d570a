"""Adapters for any Hugging Face model: ROSA, LoRA, ReLoRA, DoRA, (IA)³, BitFit.

    model = rosa.inject(AutoModelForCausalLM.from_pretrained("gpt2"), rosa.RosaConfig(rank=0.05))
    resampler = rosa.Resampler(model, optimizer, config)       # and call after_epoch after each epoch

Needs torch, transformers and safetensors only. Torch is imported with the first name that needs it.

``injection.py`` wraps and merges layers, ``targets.py`` says which, and ``quantised.py`` what quantised ones allow.
``disabling.py`` gives the base's function back from what ``kept_base.py`` keeps. ``layers.py`` is the contract of an
adapter layer, ``fused.py`` its product, ``hooks.py`` its hooks, ``layer_state.py`` its state while merged;
``methods`` has one file per method. ``subspace.py`` is ROSA's mathematics. ``resampling.py`` resamples many layers at
once, in ``threads.py``, ``resampler.py`` on schedule; ``optimization.py`` is what adapters ask of an optimizer,
``optimizer_steps.py`` a hook on its steps; ``averages.py`` finds averages that a resample makes meaningless.
``adapter_files.py`` saves and loads, with ``adapter_description.py``, ``files.py`` and ``checksums.py``;
``peft_files.py`` reads PEFT's files, and ``exporting.py`` saves a plain model. ``saved_modules.py`` is of modules
that train whole, ``report.py`` of counts, ``sharding.py`` of sharded layers. ``config.py``, ``registry.py`` and
``errors.py`` serve all of them.
``integrations``: PEFT, and the HF Trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # renamed to themselves: so a type checker takes them for public
    from rosa.adapter_files import load_adapter as load_adapter, save_adapter as save_adapter
    from rosa.config import AdapterConfig as AdapterConfig, LowRankConfig as LowRankConfig
    from rosa.disabling import disabled as disabled
    from rosa.errors import AdapterError as AdapterError
    from rosa.exporting import export as export
    from rosa.injection import (
        adapter_layers as adapter_layers,
        inject as inject,
        merge as merge,
        merged as merged,
        start_adapters as start_adapters,
        train_only as train_only,
        unmerge as unmerge,
        unwrap as unwrap,
    )
    from rosa.layers import AdapterLayer as AdapterLayer, LowRankLayer as LowRankLayer
    from rosa.methods import register as register
    from rosa.methods.bitfit import BitFitConfig as BitFitConfig
    from rosa.methods.dora import DoraConfig as DoraConfig
    from rosa.methods.ia3 import IA3Config as IA3Config
    from rosa.methods.lora import LoraConfig as LoraConfig
    from rosa.methods.relora import ReloraConfig as ReloraConfig
    from rosa.methods.rosa import RosaConfig as RosaConfig
    from rosa.optimization import parameter_groups as parameter_groups
    from rosa.report import ParameterReport as ParameterReport, parameter_report as parameter_report
    from rosa.resampler import Resampler as Resampler, resample as resample

__version__ = "0.1.0"

_HOMES = {  # name: its module
    "AdapterConfig": "config",
    "AdapterError": "errors",
    "AdapterLayer": "layers",
    "BitFitConfig": "methods.bitfit",
    "DoraConfig": "methods.dora",
    "IA3Config": "methods.ia3",
    "LoraConfig": "methods.lora",
    "LowRankConfig": "config",
    "LowRankLayer": "layers",
    "ParameterReport": "report",
    "ReloraConfig": "methods.relora",
    "Resampler": "resampler",
    "RosaConfig": "methods.rosa",
    "adapter_layers": "injection",
    "disabled": "disabling",
    "export": "exporting",
    "inject": "injection",
    "load_adapter": "adapter_files",
    "merge": "injection",
    "merged": "injection",
    "parameter_groups": "optimization",
    "parameter_report": "report",
    "register": "methods",
    "resample": "resampler",
    "save_adapter": "adapter_files",
    "start_adapters": "injection",
    "train_only": "injection",
    "unmerge": "injection",
    "unwrap": "injection",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
