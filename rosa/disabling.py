"""``disabled``: the function of the base model, for the reference of DPO or of a KL penalty."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rosa.errors import AdapterError
from rosa.fused import full_precision
from rosa.hooks import StandIn, replaced_layers, share_hooks
from rosa.injection import Model, layers_in_place
from rosa.layer_state import check_in_memory
from rosa.layers import AdapterLayer
from rosa.saved_modules import base_modules, warn_of_others
from rosa.sharding import is_sharded


@contextlib.contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Within a ``with`` block the model computes what it computed before it was adapted. May be nested.

        with torch.no_grad(), rosa.disabled(model):
            reference = model(**batch).logits

    What trains beside the adapters is not put back, which a warning says; nor are running statistics of BatchNorm.
    Other modules stand in the place of the adapter layers meanwhile, so merge, save and resample outside of the block.
    No parameter is written, and afterwards the model is as before, to the bit. LoRA, DoRA, (IA)³ and BitFit give the
    base's function exactly, and so do ROSA and ReLoRA where W_0 is kept whole, as for 16-bit weights. Else these two
    give it up to rounding, (x W_f + b_0) − (x left) right with the factors of W_f − W_0: within 1e-5 in float32. Their
    products at most double the cost of a layer. What is kept is copied to the device at the start of each block.

    Raises:
        AdapterError: the model has no adapters; training wrote over values of the base that were not kept (``inject``
            with ``keep_base=False``) or whose layer is offloaded; or a sharded model is merged, or has modules that
            train whole.
    """
    layers = layers_in_place(model)
    if not layers and not any(isinstance(module, StandIn) for module in model.modules()):
        raise AdapterError("this model has no adapters to disable (within rosa.merged they are not in their places)")
    if layers:  # else this is a block within another
        warn_of_others(model, layers, "what rosa.disabled computes is not the base", stacklevel=4)
    stand_ins = {name: BaseFunction(layer) for name, layer in layers.items()}
    with base_modules(model), replaced_layers(model, layers, stand_ins):
        yield model


class _Unhooked(nn.Module):
    """Calls a module's forward without its hooks."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Any:
        return self.base.forward(x)


class BaseFunction(StandIn):
    """An adapter layer's base module as it was before the adaptation, x W_0 + b_0, with the layer's hooks.

    Raises:
        AdapterError: see ``disabled``.
    """

    def __init__(self, layer: AdapterLayer) -> None:
        super().__init__()
        self.unhooked = _Unhooked(layer.base)
        for name, buffer in layer.named_buffers(recurse=False):  # DistributedDataParallel looks for those that it knows
            self.register_buffer(name, buffer)
        self.train(layer.training)
        share_hooks(self, layer)
        self.transposed = layer.transposed
        self.values, self.pair = _base_values(layer)

    def _value(self, name: str) -> Any:
        """W_0 as far as it is kept, or b_0, in the dtype of the module's own."""
        own = getattr(self.unhooked.base, name)
        return self.values[name].to(own) if name in self.values else own

    @property
    def weight(self) -> Tensor:
        """W_0 in the shape and dtype of the base module's weight, for models that read ``layer.weight``."""
        weight: Tensor = self._value("weight")
        if self.pair is None:
            return weight
        left, right = (self.pair[1].T, self.pair[0].T) if self.transposed else self.pair
        with full_precision(weight.device):
            return torch.addmm(weight.to(left.dtype), left, right, alpha=-1).to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """b_0 (n,); None if the base module has none."""
        return self._value("bias")  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        values = {f"base.{name}": self._value(name) for name in self.values}
        out: Tensor = functional_call(self.unhooked, values, (x,)) if values else self.unhooked(x)
        if self.pair is None:
            return out
        left, right = self.pair
        return (out - (x.to(left.dtype) @ left) @ right).to(out.dtype)


def _base_values(layer: AdapterLayer) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """The base's values that the base module does not hold now, by name; and the factors of W_f − W_0, if needed."""
    kept, weight = layer.kept, layer.unmerged_weight
    if kept is None and (layer.rewrites_base or layer.trains_bias):
        raise AdapterError(
            f"{layer.name}: training writes over the base's values, and they were not kept. Adapt or load the base "
            "model with keep_base=True."
        )
    if layer.rewrites_base or layer.trains_bias or layer.merged:
        check_in_memory([layer])  # what is kept would have to go to the device of the forward pass
    if layer.merged and is_sharded(weight):
        raise AdapterError("this model is sharded and merged: unmerge it first (rosa.unmerge)")
    values = dict(layer._unmerged or {})
    if kept is None:
        return values, None
    if kept.bias is not None:
        values["bias"] = kept.bias.to(weight.device)
    if kept.whole is not None:
        whole = kept.whole.to(weight.device)
        values["weight"] = whole.T if layer.transposed else whole
        return values, None
    pair = kept.difference()
    return values, pair and (pair[0].to(weight.device), pair[1].to(weight.device))
