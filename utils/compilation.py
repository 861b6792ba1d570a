"""torch.compile over a model's blocks: one graph for all of them, whatever the length of a batch."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from utils.errors import UserError


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks: the members of its outermost ModuleLists."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [module for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    return [block for module in outer for block in module]


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile each block in place, to run at its next call; how many there are.

    Block by block and not as a whole, because equal blocks share one graph, which compiles in the time of a single
    block. Lengths and batch sizes are symbols in it, and parameters are its inputs, so that neither a batch of
    another length nor a resample compiles anew. Names in the state dict stay.
    """
    found = blocks(model)
    for block in found:
        block.compile(backend=backend, dynamic=True)
    return len(found)


def wanted(setting: bool | str, device: torch.device) -> bool:
    """``train.compile``: auto means where launching kernels costs more than compiling them, on CUDA, if it can compile.

    Raises:
        UserError: true, where what compiles is not installed.
    """
    missing = _missing(device)
    if setting is True and missing:
        raise UserError(f"train.compile=true needs {missing} on {device.type}: install it, or leave train.compile=auto")
    return setting is True or (setting == "auto" and device.type == "cuda" and not missing)


def _missing(device: torch.device) -> str | None:
    """What torch.compile lacks here to write code for ``device``."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton"
    return None if any(map(shutil.which, ("g++", "clang++", "c++"))) else "a C++ compiler such as g++"
