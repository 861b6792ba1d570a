"""What each layer has learned since the pretrained weights, W_K − W_0, as two factors cut to a rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rosa.errors import AdapterError
from rosa.injection import adapter_layers
from rosa.kept_base import rank_of_share, rounding_bound
from rosa.layers import AdapterLayer, LowRankLayer, product
from rosa.quantised import is_quantised
from rosa.saved_modules import saved_modules
from rosa.subspace import short_side_vectors, split_triplets
from rosa.targets import WRAPPERS, canonical_names

ELSEWHERE = (
    "save the adapter (rosa.save_adapter), load it into the model without quantisation (rosa.load_adapter), and "
    "convert that one"
)
Layer = AdapterLayer | nn.Linear  # or Conv1D, which has the same attributes


@dataclass(frozen=True)
class Change:
    """The change of one layer.

    Attributes:
        a, b: factors (m, r) and (r, n), float32.
        norm, lost: squared Frobenius norms of W_K − W_0, and of what A B lacks of it.
        bias: the change of the bias (n,); None if there is none.
    """

    a: Tensor
    b: Tensor
    norm: float
    lost: float
    bias: Tensor | None

    @property
    def rank(self) -> int:
        return int(self.a.shape[1])

    @torch.no_grad()
    def add_to(self, module: Any) -> None:
        """Add A B and the change of the bias to a plain Linear or Conv1D, in place."""
        delta = product(self.a, self.b)
        module.weight.add_(delta.T if isinstance(module, nn.Linear) else delta)
        if self.bias is not None:
            module.bias.add_(self.bias)


def base_module(layer: Layer) -> nn.Linear:
    """The Linear or Conv1D of an adapted or plain layer."""
    return layer.base if isinstance(layer, AdapterLayer) else layer


def changed_layers(model: nn.Module, pretrained: Mapping[str, Tensor]) -> dict[str, Layer]:
    """The adapted layers by name, and the plain ones outside ``saved_modules`` that differ from the pretrained model.

    Raises:
        AdapterError: no adapters, adapters without a pair, or a quantised weight.
    """
    adapted = adapter_layers(model)
    if not adapted:
        raise AdapterError("this model has no adapters to convert")
    if is_quantised(model):
        raise AdapterError(f"this model is quantised: {ELSEWHERE}")
    if not all(isinstance(layer, LowRankLayer) for layer in adapted.values()):
        raise AdapterError("these adapters have no pair A, B: save the plain model instead (rosa.export)")
    names, inner = canonical_names(model), {id(layer.base) for layer in adapted.values()}
    inner |= {id(part) for module in saved_modules(model).values() for part in module.modules()}  # saved whole
    found: dict[str, Layer] = {}
    for long, module in model.named_modules():
        name = names[long]
        if name in adapted:
            found[name] = adapted[name]
        elif id(module) not in inner and (key := _changed_parameter(name, module, pretrained)):
            if not isinstance(module, (nn.Linear, Conv1D)):
                raise AdapterError(
                    f"{key} is not the base's either, and a LoRA adapter holds changes of Linear and Conv1D only: save "
                    "the plain model instead (rosa.export)"
                )
            found[name] = module
    return found


def _changed_parameter(name: str, module: nn.Module, pretrained: Mapping[str, Tensor]) -> str | None:
    """A module's own parameter that has other values in the base, in the same shape; None if there is none.

    Raises:
        AdapterError: one trains that the base does not have, or has in another shape.
    """
    for own, values in module.named_parameters(recurse=False):
        key = f"{name}.{own}".removeprefix(".")
        before = pretrained.get(key)
        if before is None or before.shape != values.shape:
            if values.requires_grad:
                raise AdapterError(
                    f"{key} trains, and the base has no such parameter of this shape, so that a LoRA adapter of it "
                    "cannot hold it: give a base made like the model (with its head, its vocabulary), name the module "
                    "in modules_to_save, or save the plain model (rosa.export)"
                )
            continue
        if not torch.equal(values.detach(), before.to(values.device, values.dtype)):
            return key
    return None


def pretrained_values(base: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the pretrained model by name, with and without the wrappers of DDP and torch.compile."""
    if isinstance(base, nn.Module):
        if adapter_layers(base):
            raise AdapterError("base has adapters itself: give the pretrained model as from_pretrained loads it")
        if is_quantised(base):
            raise AdapterError(f"base is quantised: {ELSEWHERE}")
        base = base.state_dict()
    unwrapped = {".".join(part for part in key.split(".") if part not in WRAPPERS): key for key in base}
    return {**{plain: base[key] for plain, key in unwrapped.items()}, **base}


@torch.no_grad()
def change_of(
    name: str, layer: Layer, pretrained: Mapping[str, Tensor], largest: int | None, keep: float | None
) -> Change:
    """W_K − W_0 (m, n) as A B with √S on both sides, cut to its numerical rank or further (at least 1)."""
    module = base_module(layer)
    before, after = _pretrained(f"{name}.weight", module.weight, pretrained), module.weight.double()
    writes = isinstance(layer, AdapterLayer) and (layer.rewrites_base or layer.merged)
    if writes and pretrained[f"{name}.weight"].data_ptr() == module.weight.data_ptr():
        raise AdapterError(f"base holds the very weight of {name}, which this model has written: read the base again")
    if isinstance(module, nn.Linear):
        before, after = before.T, after.T
    if isinstance(layer, AdapterLayer) and not layer.merged and (delta := layer.delta()) is not None:
        after = after + delta.double()
    # a method that leaves W as it is keeps its change in float32, whatever the dtype of W
    dtype = module.weight.dtype if writes or not isinstance(layer, AdapterLayer) else torch.float32
    u, s, vt = _triplets(after - before)
    rank = _rank(s, rounding_bound(before, dtype), largest, keep)
    (a, b), squares = split_triplets(u[:, :rank], s[:rank], vt[:rank], "sqrt"), s.square()
    return Change(
        a.float(), b.float(), float(squares.sum()), float(squares[rank:].sum()), _bias(name, layer, pretrained)
    )


def _triplets(change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, q), S (q,) falling and Vᵀ (q, n) of a change in float64.

    They come from the Gram matrix of the shorter side, in a fraction of the time of an SVD. Values below some 1e-8 of
    the largest one are noise. So is what is below ``rounding_bound``, which is more.
    """
    m, n = change.shape
    vectors = short_side_vectors([change])[0]
    rows = vectors.T @ (change if m <= n else change.T)
    values, order = torch.linalg.vector_norm(rows, dim=1).sort(descending=True)
    short, long = vectors[:, order], rows[order] / values.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    return (short, values, long) if m <= n else (long.T, values, short.T)


def _bias(name: str, layer: Layer, pretrained: Mapping[str, Tensor]) -> Tensor | None:
    bias = base_module(layer).bias
    if bias is None:
        return None
    change = (bias.double() - _pretrained(f"{name}.bias", bias, pretrained)).float()
    trains = isinstance(layer, AdapterLayer) and layer.trains_bias
    return change if trains or change.any() else None


def _rank(s: Tensor, rounding: float, largest: int | None, keep: float | None) -> int:
    """How many of the singular values ``s`` (falling) to keep: those above ``rounding``, at most what the cut says."""
    rank = int((s > rounding).sum())
    if keep is not None and rank:
        rank = min(rank, rank_of_share(s[:rank].square(), keep))
    return max(1, rank if largest is None else min(rank, largest))


def _pretrained(key: str, like: Tensor, pretrained: Mapping[str, Tensor]) -> Tensor:
    """The base's tensor ``key`` in float64 on the device of ``like``."""
    if key not in pretrained:
        raise AdapterError(f"base has no {key}: it is not the model that was adapted")
    found = pretrained[key]
    if found.shape != like.shape:
        raise AdapterError(
            f"base is another model: its {key} is {tuple(found.shape)}, the adapted one {tuple(like.shape)}"
        )
    return found.detach().to(like.device, torch.float64)
