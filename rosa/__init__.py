"""Adapters for any Hugging Face model: ROSA, LoRA, ReLoRA, DoRA, (IA)³, BitFit.

    model = rosa.inject(AutoModelForCausalLM.from_pretrained("gpt2"), rosa.RosaConfig(rank=0.05))
    resampler = rosa.Resampler(model, optimizer, config)       # and call after_epoch after each epoch

Needs torch, transformers and safetensors only. They are imported with the first name that is used, all of
which are in ``_api.py``.

``injection.py`` wraps and merges layers, ``targets.py`` says which, and ``quantised.py`` what quantised ones allow.
``disabling.py`` gives the base's function back from what ``kept_base.py`` keeps. ``layers.py`` is the contract of an
adapter layer, ``fused.py`` its product, ``hooks.py`` its hooks, ``layer_state.py`` its state while merged;
``methods`` has one file per method. ``subspace.py`` is ROSA's mathematics. ``resampling.py`` resamples many layers at
once, in ``threads.py``, ``resampler.py`` on schedule; ``optimization.py`` is what adapters ask of an optimizer,
``optimizer_steps.py`` a hook on its steps; ``averages.py`` finds averages that a resample makes meaningless.
``adapter_files.py`` saves and loads, with ``adapter_description.py``, ``files.py`` and ``checksums.py``;
``peft_files.py`` reads PEFT's files, and ``exporting.py`` saves a plain model. ``saved_modules.py`` is of modules
that train whole, ``report.py`` of counts, ``sharding.py`` of sharded layers. ``settings.py``, ``registry.py`` and
``errors.py`` serve all of them.
``integrations``: PEFT, and the HF Trainer.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosa._api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    names = vars(importlib.import_module(f"{__name__}._api"))
    public = [key for key in names if not key.startswith("_")]
    if name != "__all__" and name not in public:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return public if name == "__all__" else names[name]


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
