"""A quantised layer as a plain one."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.quantised import is_tensor_class
from rosa.targets import obstacle


@torch.no_grad()
def dequantised(name: str, module: Any) -> nn.Linear:
    """A Linear with the weight and bias that a quantised layer stands for.

    The weight is asked of the layer (``dequantize``, ``dequantize_weight``), of a weight that is a tensor class of its
    own (torchao), or of PEFT (bitsandbytes, HQQ).

    Raises:
        AdapterError: none of them gives an (n, m) matrix of floating-point numbers.
    """
    values = _values(module)
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() != 2:
        raise AdapterError(
            f"{name}: its {type(module).__name__} cannot be dequantised here. Load the model without quantisation, or "
            "leave the layer out by exclude_modules."
        )
    n, m = getattr(module, "out_features", values.shape[0]), getattr(module, "in_features", values.shape[1])
    values = values.T if values.shape == (m, n) != (n, m) else values
    plain = nn.Linear(values.shape[1], values.shape[0], bias=module.bias is not None, device="meta", dtype=values.dtype)
    plain.weight = nn.Parameter(values.detach().clone().contiguous(), requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().to(values.dtype), requires_grad=False)
    if reason := obstacle(plain):
        raise AdapterError(f"{name} cannot be adapted: {reason}")
    return plain.train(module.training)


def _values(module: Any) -> Any:
    for method in ("dequantize", "dequantize_weight"):
        if callable(own := getattr(module, method, None)):
            return own()
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and is_tensor_class(weight):
        return weight.dequantize()
    try:
        return dequantize_module_weight(module)
    except (AttributeError, ImportError, TypeError, ValueError):
        return None
