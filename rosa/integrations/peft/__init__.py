"""ROSA beside the ``peft`` library. A name is imported when it is asked for; those of the tuner need the package.

- ``tuner.py`` (``RosaModel``), ``config.py`` (``RosaConfig``), ``layer.py`` (a layer of a PEFT model), ``adapter.py``
  (one adapter of it) and ``quantised.py``: ROSA for ``get_peft_model``, outside of PEFT's tree:

      from rosa.integrations.peft import RosaConfig
      model = get_peft_model(model, RosaConfig(r=8, target_modules="all-linear"))

- ``as_lora.py`` (``save_as_lora``): such an adapter written as a LoRA adapter, and ``lora_files.py``: one of
  ``rosa.inject``, whose pairs ``changes.py`` finds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosa.integrations.peft.as_lora import save_as_lora as save_as_lora
    from rosa.integrations.peft.config import RosaConfig as RosaConfig
    from rosa.integrations.peft.lora_files import to_peft_lora as to_peft_lora
    from rosa.integrations.peft.tuner import RosaModel as RosaModel

_HOMES = {"RosaConfig": "tuner", "RosaModel": "tuner", "save_as_lora": "as_lora", "to_peft_lora": "lora_files"}
_NEED_PEFT = ("as_lora", "tuner")
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOMES[name] in _NEED_PEFT:
        _check_package()
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def _check_package() -> None:
    """Raise AdapterError unless PEFT is there, in a version that works beside transformers 5."""
    from rosa.errors import AdapterError

    try:
        from peft import __version__ as version
    except ImportError:
        raise AdapterError(f"{__name__} needs the package peft (pip install 'peft>=0.18')") from None
    if tuple(map(int, version.split(".")[:2])) < (0, 18):
        raise AdapterError(f"{__name__} needs peft 0.18 or later, not {version} (pip install -U peft)")
