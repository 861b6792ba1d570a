"""torch.compile of a model's blocks: one graph for all blocks and all batch shapes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from utils.errors import UserError
from utils.log import log


def blocks(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks: the members of its outermost ModuleLists."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [module for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    return [block for module in outer for block in module]


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each block in place, at its next call.

    Equal blocks share one graph, so that compiling all takes the time of one. Lengths and batch sizes are symbols in
    the graph and parameters are its inputs: neither another batch shape nor a resample compiles again. Names in the
    state dict stay. Graphs of earlier models are dropped, because they count against the number that one function may
    have, beyond which it runs uncompiled.
    """
    torch._dynamo.reset()
    for block in blocks(model):
        block.compile(backend=backend, dynamic=True)


def should_compile(setting: bool | str, device: torch.device) -> bool:
    """Whether to compile, by ``train.compile``. Auto: on CUDA, where launching kernels costs more than compiling them.

    If auto cannot compile, a warning says why.

    Raises:
        UserError: for true, if the compiler is not installed.
    """
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return False
    missing = _missing(device)
    if missing and setting is True:
        raise UserError(f"train.compile=true needs {missing} on {device.type}: install it, or leave train.compile=auto")
    if missing:
        log.warning("train.compile=auto: nothing is compiled, and training is slower, without %s", missing)
    return not missing


def _missing(device: torch.device) -> str | None:
    """The compiler or package that torch.compile needs for ``device`` and lacks here; None if it lacks nothing."""
    if device.type != "cuda":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        return None if shutil.which(compiler) else f"the C++ compiler {compiler} (or another one, named by CXX)"
    if not importlib.util.find_spec("triton"):
        return "the package triton"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]  # Triton compiles its launchers
    return None if any(map(shutil.which, compilers)) else f"the C compiler {' or '.join(compilers)}"
