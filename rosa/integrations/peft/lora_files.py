"""Save what an adapter has learned as a standard LoRA adapter of the ``peft`` library.

After K factorisations ROSA's change of a weight, W_K − W_0, has a rank of at most 2 R K: it is the sum of each trained
pair minus the pair as it was sampled. If that rank is small, two factors of W_K − W_0 take less room than the weight.
Needs the package ``peft``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.injection import adapter_layers
from rosa.layers import LowRankLayer
from rosa.targets import WRAPPERS

WEIGHTS_FILE = "adapter_model.safetensors"  # PEFT's name for it


@dataclass(frozen=True)
class _Change:
    """The change of one layer: A (m, r), B (r, n) and the bias's change (n,), None where there is none."""

    a: Tensor
    b: Tensor
    bias: Tensor | None


def to_peft_lora(model: nn.Module, base: nn.Module | Mapping[str, Tensor], folder: str | Path) -> int:
    """Write the change since the pretrained weights as a LoRA adapter that ``PeftModel.from_pretrained`` loads.

    Each layer gets the numerical rank r of its own change, found by SVD in float64. Singular values below the rounding
    of the weights' dtype are dropped. Trained biases become the biases of PEFT's B (``lora_bias``). PEFT cannot merge
    those if only some adapted layers have a bias. Then the file holds the trained biases themselves
    (``bias="lora_only"``), which PEFT loads into the base model.

    Args:
        model: an adapted model, merged or not; it is not changed.
        base: the pretrained model (plain) or its state dict. ROSA writes into the weights of ``model``, so they must be
            read again, by ``from_pretrained`` with the same dtype.
        folder: where to write two files, ``adapter_config.json`` and the weights; made if missing.

    Returns:
        The largest rank of all layers.

    Raises:
        AdapterError: the method has no pair, ``base`` is not this model's base, or the pairs would be no smaller than
            the weights themselves: Σ r (m + n) ≥ Σ m n. Nothing is written then.
    """
    try:
        from peft import LoraConfig as PeftLoraConfig
    except ImportError:
        raise AdapterError("to_peft_lora needs the package peft (pip install peft)") from None
    layers, pretrained = _layers(model), _pretrained_values(base)
    changes = {name: _change(name, layer, pretrained) for name, layer in layers.items()}

    pairs = sum(change.a.numel() + change.b.numel() for change in changes.values())
    whole = sum(layer.base.weight.numel() for layer in layers.values())
    rank = max(change.a.shape[1] for change in changes.values())
    if pairs >= whole:
        raise AdapterError(
            f"the change has rank up to {rank}: as a LoRA adapter it would take {pairs:,} numbers, the adapted weights "
            f"themselves take {whole:,}. Save the plain model instead: rosa.export(model, folder)."
        )
    biases = {name for name, change in changes.items() if change.bias is not None}
    added = biases == changes.keys()  # False: the trained biases replace those of the base
    ranks = {f"^{re.escape(name)}": change.a.shape[1] for name, change in changes.items()}
    below = {pattern: r for pattern, r in ranks.items() if r < rank}
    config = PeftLoraConfig(
        r=rank,
        lora_alpha=rank,  # alpha = r: scale 1
        rank_pattern=below,
        alpha_pattern=dict(below),
        target_modules=list(changes),
        fan_in_fan_out=not any(layer.transposed for layer in layers.values()),
        lora_bias=added,
        bias="lora_only" if biases and not added else "none",
        task_type=_task(model),
        base_model_name_or_path=getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        inference_mode=True,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_peft_tensors(changes, layers, added), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    return rank


def _layers(model: nn.Module) -> dict[str, LowRankLayer]:
    """The adapted layers by name. Raises AdapterError unless all have a pair."""
    adapted = adapter_layers(model)
    if not adapted:
        raise AdapterError("this model has no adapters to convert")
    layers = {name: layer for name, layer in adapted.items() if isinstance(layer, LowRankLayer)}
    if len(layers) < len(adapted):
        raise AdapterError("these adapters have no pair A, B: save the plain model instead (rosa.export)")
    return layers


def _pretrained_values(base: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the pretrained model by name, with and without the wrappers of DDP and torch.compile."""
    if isinstance(base, nn.Module):
        if adapter_layers(base):
            raise AdapterError("base has adapters itself: give the pretrained model as from_pretrained loads it")
        base = base.state_dict()
    unwrapped = {".".join(part for part in key.split(".") if part not in WRAPPERS): key for key in base}
    return {**{plain: base[key] for plain, key in unwrapped.items()}, **base}


@torch.no_grad()
def _change(name: str, layer: LowRankLayer, pretrained: Mapping[str, Tensor]) -> _Change:
    """W_K − W_0 (m, n) as A B with √S on both sides, cut to its numerical rank (at least 1)."""
    before = _pretrained(f"{name}.weight", layer.base.weight, pretrained)
    before = before.T if layer.transposed else before
    after = layer.weight_mn.double()
    if not layer.merged:
        after = after + layer.delta().double()
    u, s, vt = torch.linalg.svd(after - before, full_matrices=False)
    rank = max(1, int((s > _rounding(before, layer.base.weight.dtype)).sum()))
    root = s[:rank].sqrt()
    bias = None
    if layer.trains_bias:
        bias = (layer.base.bias.double() - _pretrained(f"{name}.bias", layer.base.bias, pretrained)).float()
    return _Change((u[:, :rank] * root).float(), (root[:, None] * vt[:rank]).float(), bias)


def _rounding(weight: Tensor, dtype: torch.dtype) -> float:
    """A bound of the singular values of W_K − W_0 that come from rounding alone.

    Every resample rounds each number to within ε/2 of its size. That is noise, and a random (m, n) matrix of standard
    deviation σ has singular values up to σ (√m + √n). The factor 2 leaves room for tens of resamples, whose noise grows
    with the square root of their number.
    """
    m, n = weight.shape
    deviation = torch.finfo(dtype).eps * float(weight.square().mean().sqrt())
    return 2 * deviation * (math.sqrt(m) + math.sqrt(n))


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


def _peft_tensors(changes: Mapping[str, _Change], layers: Mapping[str, LowRankLayer], added: bool) -> dict[str, Tensor]:
    """The pairs as PEFT stores them, as weights of two Linear modules: A as (r, m), B as (n, r).

    Args:
        added: whether B adds the change of the bias; else the trained bias replaces that of the base.
    """
    tensors = {}
    for name, change in changes.items():
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = change.a.T.contiguous().cpu()
        tensors[f"{prefix}.lora_B.weight"] = change.b.T.contiguous().cpu()
        if change.bias is not None:
            key, bias = ("lora_B", change.bias) if added else ("base_layer", layers[name].base.bias.detach())
            tensors[f"{prefix}.{key}.bias"] = bias.cpu()
    return tensors


def _task(model: Any) -> str | None:
    """PEFT's name of the task, by which its AutoPeftModel classes choose how to load the base.

    None if PEFT's class for the task does not take the model's inputs (Whisper's are not tokens).
    """
    if not (hasattr(model, "can_generate") and model.can_generate()) or model.main_input_name != "input_ids":
        return None
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
