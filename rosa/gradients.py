"""The gradients of adapted weights, by which ``sample_method=gradient`` draws directions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rosa.fused import full_precision
from rosa.injection import adapter_layers
from rosa.resampling import SubspaceLayer


@contextlib.contextmanager
def weight_gradients(model: nn.Module) -> Iterator[None]:
    """Within the block backward passes add dL/dW = xᵀ dL/dy of each layer to its ``gradient``, for the next resample.

    W itself needs no gradient. One layer's is on the device at a time, and goes to the CPU: m · n float32 numbers for
    each layer stay there until the resample. The pass must not run in compiled code, which ignores new hooks.
    """
    layers = [layer for layer in adapter_layers(model).values() if isinstance(layer, SubspaceLayer)]
    for layer in layers:
        layer.gradient = None
    handles = [layer.register_forward_hook(_watch) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(layer: Any, args: tuple[Any, ...], output: Tensor) -> None:
    x = args[0].detach()

    def add(grad: Tensor) -> None:
        with torch.no_grad(), full_precision(grad.device):
            rows, grads = (part.reshape(-1, part.shape[-1]).float() for part in (x, grad))
            found = (rows.T @ grads).cpu()
        layer.gradient = found if layer.gradient is None else layer.gradient.add_(found)

    if output.requires_grad:
        output.register_hook(add)  # type: ignore[no-untyped-call]
