"""Quantised layers: which ones they are, and what a method can do with them.

Such a layer computes x W + b from small integers. Methods that only add to its output or scale it, such as LoRA, train
on it as it is (QLoRA, Dettmers et al. 2023). Others read or change W itself, and a merge writes into it. They need the
dequantised weight. A module's own ``weight`` is looked up without calling a property, which might compute it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.sharding import is_sharded

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NO_MERGE = (
    "its weight is quantised and takes no change. To generate, no merge is needed. To merge, save the adapter "
    "(rosa.save_adapter) and load it into the model without quantisation (rosa.load_adapter)"
)


def quantisation(module: nn.Module) -> str | None:
    """The class or dtype of a module's quantised weight; None if it has none."""
    weight = _own(module, "weight")
    if weight is None:
        return None if _own(module, "qweight") is None else type(module).__name__  # GPTQ's and AWQ's layers
    if isinstance(weight, nn.UninitializedParameter) or is_sharded(weight):  # is_lazy does not compile
        return None
    if is_tensor_class(weight) or hasattr(weight, "quant_state"):  # bitsandbytes may store integers as bfloat16
        return type(weight).__name__
    return None if weight.dtype in DTYPES else str(weight.dtype).removeprefix("torch.")


def is_tensor_class(weight: Tensor) -> bool:
    """Whether a weight is made of other tensors (torchao's, quanto's), and acts as the matrix that it stands for."""
    return hasattr(weight, "__tensor_flatten__") and not is_sharded(weight)


def is_packed(module: Any) -> bool:
    """Whether only the module itself can read its quantised weight (bitsandbytes)."""
    return quantisation(module) is not None and not is_tensor_class(module.weight)


def readable(weight: Tensor) -> Tensor:
    """A weight as a plain tensor, if it is a tensor class; else as it is stored."""
    return weight.dequantize() if is_tensor_class(weight) else weight


def has_shape(module: nn.Module) -> bool:
    """Whether a quantised layer has a weight and gives its shape (m, n)."""
    shape = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return _own(module, "weight") is not None and all(isinstance(size, int) for size in shape)


def is_quantised(model: nn.Module) -> bool:
    """Whether any module of a model holds a quantised weight."""
    return any(quantisation(module) for module in model.modules())


def check_trainable(model: nn.Module, layers: Iterable[Any]) -> None:
    """Raise AdapterError if a layer is quantised and transformers says that no gradient passes through such layers."""
    if not any(layer.quantised for layer in layers):
        return
    for module in model.modules():
        quantizer = getattr(module, "hf_quantizer", None)
        if getattr(quantizer, "is_trainable", True) is False:
            raise AdapterError(
                f"no gradient passes through the layers of this model ({type(quantizer).__name__}): load it without "
                "quantisation, or quantised in another way"
            )


def quantised_sizes(model: nn.Module) -> dict[int, int]:
    """The sizes of the matrices that a model's quantised weights stand for, by the ids of these parameters."""
    sizes = {}
    for module in model.modules():
        if quantisation(module) and (weight := module._parameters.get("weight")) is not None:
            sides = ("in_features", "out_features") if has_shape(module) else ("num_embeddings", "embedding_dim")
            known = all(hasattr(module, side) for side in sides)
            sizes[id(weight)] = math.prod(getattr(module, side) for side in sides) if known else weight.numel()
    return sizes


def parameter_count(model: nn.Module) -> int:
    """The number of a model's parameters. A quantised weight counts as the matrix that it stands for."""
    quantised = quantised_sizes(model)
    return sum(quantised.get(id(parameter), parameter.numel()) for parameter in model.parameters())


def _own(module: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of the module itself."""
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found
