"""The device, the precision, and the Accelerator for them."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import Any

import torch

from utils.config.train import TrainConfig
from utils.errors import UserError
from utils.log import log

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}
BF16_HIDDEN_SIZE = 256  # from this hidden size on a training step in bf16 takes less than half of its time in float32
MIXED_DTYPE = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> str:
    """``auto`` becomes cuda if there is a GPU, else cpu. Raises UserError for a device that this machine lacks."""
    if name == "auto":
        forced = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"  # accelerate launch --cpu
        return "cuda" if torch.cuda.is_available() and not forced else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but PyTorch sees no CUDA device here: use train.device=auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("train.device=mps, but PyTorch sees no such device here: use train.device=auto or cpu")
    return name


def resolve_precision(name: str, device: str, hidden_size: int | None = None) -> str:
    """``auto`` becomes bf16 on GPUs that support it and on CPUs whose matrix units do, else fp32.

    Args:
        hidden_size: the model's. On a CPU, auto takes bf16 from ``BF16_HIDDEN_SIZE`` on; None: never.

    Raises:
        UserError: a precision that the device does not have.
    """
    if name != "auto":
        check_precision(name, device)
        return name
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"  # emulated it is slow
    is_large = hidden_size is not None and hidden_size >= BF16_HIDDEN_SIZE
    return "bf16" if device == "cpu" and is_large and cpu_has_bf16() else "fp32"


def check_precision(precision: str, device: str, why: str = "") -> None:
    """Raise UserError if the device lacks the precision; ``why`` names the origin if it is not the key."""
    asked = f"precision {precision} ({why})" if why else f"train.precision={precision}"
    if precision == "fp16" and device != "cuda":
        raise UserError(f"{asked} needs a CUDA device: use bf16 or fp32 here")
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError(f"{asked} is not supported by this GPU: use another GPU, or fp32")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a float32 model computes in ``precision``: fp32, bf16 or fp16."""
    dtype = MIXED_DTYPE[precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 (AVX512-BF16 or AMX), by the flags that Linux lists."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(BF16_FLAGS & set(line.split()) for line in lines if line.startswith("flags"))


def build_accelerator(train: TrainConfig, precision: str) -> Any:
    """The Accelerator for the device of ``train``, computing in ``precision``."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import GradientAccumulationPlugin

    device = resolve_device(train.device)
    AcceleratorState._reset_state()  # an earlier run in this process may have set another precision
    # the buffers are masks and tables that never change: DDP need not broadcast them in each forward pass
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    cpu = device == "cpu"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()  # accelerate launch --mixed_precision
    if launched not in ("no", MIXED_PRECISION[precision]):
        log.warning("accelerate was launched for %s, but train.precision decides: %s", launched, precision)
    # from the environment, accelerate would take steps of accumulation, by which it divides the loss
    once = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(
        cpu=cpu, mixed_precision=MIXED_PRECISION[precision], gradient_accumulation_plugin=once, kwargs_handlers=[ddp]
    )
