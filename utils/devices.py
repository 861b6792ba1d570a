"""Device, precision and processes, by accelerate."""

from __future__ import annotations

from typing import Any

import torch

from utils.config import TrainConfig
from utils.errors import UserError

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
MIXED_DTYPE = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> str:
    """``auto`` becomes cuda where there is one, else cpu. Raises UserError for a device that is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but PyTorch sees no CUDA device here: use train.device=auto or cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("train.device=mps, but PyTorch sees no such device here: use train.device=auto or cpu")
    return name


def resolve_precision(name: str, device: str) -> str:
    """``auto`` becomes bf16 where the GPU computes in it, else fp32."""
    if name == "auto":
        return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device != "cuda":
        raise UserError("train.precision=fp16 needs a CUDA device: use bf16 or fp32 here")
    return name


def build_accelerator(train: TrainConfig) -> tuple[Any, str]:
    """The Accelerator and the precision it computes in."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    device = resolve_device(train.device)
    precision = resolve_precision(train.precision, device)
    AcceleratorState._reset_state()  # several runs in one process may differ in precision
    # cpu=True: without it every rank of a CPU job takes itself for the only one
    return Accelerator(cpu=device == "cpu", mixed_precision=MIXED_PRECISION[precision]), precision
