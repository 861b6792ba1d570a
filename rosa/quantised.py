"""Quantised layers: which ones they are, and what a method can do with them.

Such a layer computes x W + b from small integers. Methods that only add to its output or scale it, such as LoRA, train
on it as it is (QLoRA, Dettmers et al. 2023). Others read or change W itself, and a merge writes into it. They need the
dequantised weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.sharding import is_sharded

NO_MERGE = (
    "its weight is quantised and takes no change: save the adapter (rosa.save_adapter), load it into the model without "
    "quantisation (rosa.load_adapter) and merge it there"
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def quantisation(module: nn.Module) -> str | None:
    """In what a module holds a quantised weight (a class, or a dtype); None if its weight is not quantised."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return type(module).__name__ if isinstance(getattr(module, "qweight", None), Tensor) else None
    if torch.nn.parameter.is_lazy(weight) or is_sharded(weight):
        return None
    if hasattr(weight, "__tensor_flatten__"):  # a tensor made of others: torchao's, quanto's
        return type(weight).__name__
    if weight.dtype not in DTYPES:  # bitsandbytes: a class of its own
        plain = type(weight) in (nn.Parameter, Tensor)
        return str(weight.dtype).removeprefix("torch.") if plain else type(weight).__name__
    return None


def has_shape(module: nn.Module) -> bool:
    """Whether a quantised layer has a weight and says of which (m, n) it stands for."""
    shape = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return hasattr(module, "weight") and all(isinstance(size, int) for size in shape)


def is_quantised(model: nn.Module) -> bool:
    """Whether any module of a model holds a quantised weight."""
    return any(quantisation(module) for module in model.modules())


def check_trainable(model: nn.Module) -> None:
    """Raise AdapterError if transformers says of a quantised model that no gradient passes through its layers."""
    quantizer = getattr(model, "hf_quantizer", None)
    if getattr(quantizer, "is_trainable", True) is False:
        raise AdapterError(
            f"no gradient passes through the layers of this model ({type(quantizer).__name__}): dequantise it "
            "(model.dequantize()), or load it without quantisation"
        )


def parameter_count(model: nn.Module) -> int:
    """The number of a model's parameters. A quantised weight counts as the matrix that it stands for."""
    counts = {id(p): math.prod(p.shape) for p in model.parameters()}
    for module in model.modules():
        if quantisation(module) and has_shape(module):
            counts[id(module.weight)] = int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
    return sum(counts.values())
