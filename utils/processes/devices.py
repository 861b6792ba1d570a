"""The device, the precision, and the Accelerator for them."""

from __future__ import annotations

import os
from typing import Any

import torch

from utils.config import TrainConfig
from utils.errors import UserError

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
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


def resolve_precision(name: str, device: str) -> str:
    """``auto`` becomes bf16 if the GPU supports it, else fp32. Raises UserError for fp16 without a GPU."""
    if name == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device != "cuda":
        raise UserError("train.precision=fp16 needs a CUDA device: use bf16 or fp32 here")
    return name


def build_accelerator(train: TrainConfig) -> tuple[Any, str]:
    """The Accelerator, and the precision in which it computes."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    device = resolve_device(train.device)
    precision = resolve_precision(train.precision, device)
    AcceleratorState._reset_state()  # an earlier run in this process may have set another precision
    # the buffers are masks and tables that never change: DDP need not broadcast them in each forward pass
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    cpu = device == "cpu"
    return Accelerator(cpu=cpu, mixed_precision=MIXED_PRECISION[precision], kwargs_handlers=[ddp]), precision
