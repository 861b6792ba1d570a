"""Save what an adapter has learned as a standard LoRA adapter, in the files of the ``peft`` library.

After K factorisations ROSA's change of a weight, W_K − W_0, has a rank of at most 2 R K: it is the sum of each trained
pair minus the pair as it was sampled. If that rank is small, two factors of W_K − W_0 take less room than the weight.
The package ``peft`` is not needed to write them.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.files import CONFIG_FILE, MODEL_FILE, keep_apart, replace_files
from rosa.injection import check_not_of_peft
from rosa.integrations.peft.changes import Change, Layer, base_module, change_of, changed_layers, pretrained_values
from rosa.kept_base import Pair, is_rounded
from rosa.peft_files import BIAS_OF_B, BIASES, LORA_A, LORA_B, PREFIX, WEIGHTS_FILE
from rosa.saved_modules import module_tensors, saved_modules
from rosa.targets import canonical_names

# vLLM's rules for such a folder are in its source: validate_legal and _validate_features in vllm/lora/peft_helper.py,
# parse_fine_tuned_lora_name in vllm/lora/utils.py, and MaxLoRARanks in vllm/config/lora.py.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values of --max-lora-rank; its default is 16
ROUNDED = 0.01  # ‖lost‖ / ‖change‖ above which it is said that rounding took a part
VLLM_TENSORS = (f".{LORA_A}", f".{LORA_B}")


@dataclass(frozen=True)
class PeftLora:
    """What ``to_peft_lora`` wrote.

    Attributes:
        changes: the pair and the change of the bias of each layer, by its name.
        vllm_problems: why vLLM refuses the folder; empty if it takes it.
    """

    changes: dict[str, Change]
    vllm_problems: list[str]

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each layer's pair."""
        return {name: change.rank for name, change in self.changes.items()}

    @property
    def rank(self) -> int:
        """The largest rank of all layers."""
        return max(self.ranks.values())

    @property
    def errors(self) -> dict[str, float]:
        """‖W_K − W_0 − A B‖ / ‖W_K − W_0‖ of each layer, in Frobenius norms; 0 for a layer that did not change."""
        return {name: _error([change]) for name, change in self.changes.items()}

    @property
    def error(self) -> float:
        """The same ratio with the norms over all layers together."""
        return _error(self.changes.values())

    @property
    def max_lora_rank(self) -> int | None:
        """The least value of vLLM's ``--max-lora-rank`` that admits this rank; None if no value does."""
        return next((allowed for allowed in VLLM_RANKS if allowed >= self.rank), None)

    def merge_into(self, base: nn.Module) -> None:
        """Add the pairs, as they were written, and the changes of biases to the base model's weights, in place."""
        modules = {name: base.get_submodule(long) for long, name in canonical_names(base).items()}
        for name, change in self.changes.items():
            change.add_to(modules[name])


def to_peft_lora(
    model: nn.Module,
    base: nn.Module | Mapping[str, Tensor],
    folder: str | Path,
    *,
    rank: int | None = None,
    keep: float | None = None,
) -> PeftLora:
    """Write the change since the pretrained weights as a LoRA adapter that ``PeftModel.from_pretrained`` loads.

    Each layer gets the numerical rank r of its own change, found in float64. Singular values below the rounding of
    weights that training has written are dropped. With a base in 16 bits these may be a part of what was learned, which
    cannot be told from noise: a warning says so if it is more than 1 %. ``rank`` or ``keep`` cut the pair further, to
    the best approximation of its rank (Eckart and Young 1936). Linear and Conv1D layers that are not adapted and differ
    from ``base`` get a pair too. Modules of ``modules_to_save`` are written whole.

    Trained biases become the biases of PEFT's B (``lora_bias``). PEFT cannot merge those if only some of the layers
    have a bias. Then the file holds the trained biases themselves (``bias="lora_only"``), which PEFT loads into the
    base model. vLLM takes neither.

    Args:
        model: an adapted model, merged or not; it is not changed.
        base: the pretrained model (plain) or its state dict. ROSA writes into the weights of ``model``, so they must be
            read again, by ``from_pretrained`` with the same dtype.
        folder: where to write two files, ``adapter_config.json`` and the weights; made if missing.
        rank: the largest rank of a layer's pair.
        keep: the least share, in (0, 1], of the squared Frobenius norm of its change that each layer's pair keeps. All
            layers together keep that share too.

    Raises:
        AdapterError: the method has no pair, ``base`` is not this model's base or shares a weight that this model has
            written, a module of ``modules_to_save`` shares a weight with another one, the pairs would be no smaller
            than the weights themselves, Σ r (m + n) ≥ Σ m n, or the folder holds a model. Nothing is written then.
    """
    check_not_of_peft(model, "write its ROSA adapter by rosa.integrations.peft.save_as_lora(folder, model)")
    _check_cut(rank, keep)
    keep_apart(Path(folder), MODEL_FILE)
    pretrained = pretrained_values(base)
    layers = changed_layers(model, pretrained)
    changes = {name: change_of(name, layer, pretrained, rank, keep) for name, layer in layers.items()}
    pairs, biases = {name: (change.a, change.b) for name, change in changes.items()}, _biases(changes)
    check_size(pairs.values(), "Save the plain model instead (rosa.export), or cut the change, by keep=0.99 or")
    tensors = lora_tensors(pairs, biases, {name: base_module(layers[name]).bias for name in biases})
    saved = _whole_modules(model)
    tensors |= {f"{PREFIX}{key}": values.cpu().contiguous() for key, values in module_tensors(saved).items()}
    config = _peft_config(model, layers, changes) | {"modules_to_save": sorted(saved) or None}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    replace_files(
        {
            folder / WEIGHTS_FILE: lambda path: save_file(tensors, path, metadata={"format": "pt"}),
            folder / CONFIG_FILE: lambda path: path.write_text(text, encoding="utf-8"),
        }
    )
    written = PeftLora(changes, vllm_problems(config, tensors))
    if rank is None and keep is None:
        _warn_of_rounding(written.error, [base_module(layer).weight for layer in layers.values()])
    return written


def _warn_of_rounding(error: float, weights: Iterable[Tensor]) -> None:
    if error > ROUNDED and any(map(is_rounded, weights)):
        warnings.warn(
            f"the pairs lack {error:.0%} of the change: it lies below the rounding of the weights. Save the plain "
            "model instead (rosa.export), or train with the base in float32",
            stacklevel=3,
        )


def vllm_problems(config: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Why vLLM refuses a LoRA adapter with this ``adapter_config.json`` and tensors of these names; [] if it takes it.

    Only the format is judged, not whether vLLM serves adapters for the model's architecture.
    """
    problems = [f"{key} is missing" for key in ("r", "lora_alpha", "target_modules") if config.get(key) is None]
    problems += [f"{key} is set" for key in ("modules_to_save", "use_dora") if config.get(key)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']}, not none")
    largest = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    if largest > VLLM_RANKS[-1]:
        problems.append(f"its rank {largest} is above {VLLM_RANKS[-1]}, the largest --max-lora-rank")
    if other := [name for name in tensors if not name.endswith(VLLM_TENSORS)]:
        kind = "trained biases" if all(name.endswith(".bias") for name in other) else "tensors outside its pairs"
        problems.append(f"it has {kind} ({other[0]})")
    return problems


def _check_cut(rank: int | None, keep: float | None) -> None:
    if rank is not None and keep is not None:
        raise AdapterError("rank and keep exclude each other: give one of them")
    if rank is not None and rank < 1:
        raise AdapterError(f"rank={rank} must be at least 1")
    if keep is not None and not 0 < keep <= 1:
        raise AdapterError(f"keep={keep} must be a share in (0, 1]")


def check_size(pairs: Collection[Pair], ways_out: str) -> None:
    """Raise AdapterError, with ``ways_out``, unless the pairs are smaller than the weights that they change."""
    shapes = [(a.shape[0], b.shape[1]) for a, b in pairs]
    numbers = sum(a.numel() + b.numel() for a, b in pairs)
    whole, sides = sum(m * n for m, n in shapes), sum(m + n for m, n in shapes)
    if numbers >= whole:
        raise AdapterError(
            f"the change has rank up to {max(a.shape[1] for a, _ in pairs)}: as a LoRA adapter it takes {numbers:,} "
            f"numbers, the adapted weights themselves take {whole:,}. {ways_out} by a "
            f"rank of at most {max(1, (whole - 1) // sides)}."
        )


def _error(changes: Collection[Change]) -> float:
    """‖W_K − W_0 − A B‖ / ‖W_K − W_0‖ over these layers, 0 without a change."""
    norm, lost = sum(change.norm for change in changes), sum(change.lost for change in changes)
    return math.sqrt(lost / norm) if norm else 0.0


def lora_settings(ranks: Mapping[str, int], biases: Collection[str], *, conv1d: bool) -> dict[str, Any]:
    """What PEFT's ``LoraConfig`` must say of pairs of these ranks. Alpha is the rank in each layer: every scale is 1.

    vLLM computes one scale, from r and lora_alpha, and does not read the patterns. It is the right one for all layers.

    Args:
        ranks: of each layer's pair, by its name.
        biases: the layers whose bias has changed. If all have, B adds the changes (``lora_bias``). If only some have,
            the trained biases replace those of the base (``bias="lora_only"``).
        conv1d: whether the layers are Conv1D.
    """
    rank = max(ranks.values())
    below = {f"^{re.escape(name)}": r for name, r in ranks.items() if r < rank}
    added = _are_added(ranks, biases)
    return {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": below,
        "alpha_pattern": dict(below),
        "fan_in_fan_out": conv1d,
        "bias": "lora_only" if biases and not added else "none",
        "lora_bias": added,
    }


def lora_tensors(
    pairs: Mapping[str, Pair], changes: Mapping[str, Tensor], biases: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The pairs (m, r), (r, n) as PEFT stores them, as weights of two Linear modules: A as (r, m), B as (n, r).

    Args:
        changes: of the biases (n,), by the layer's name; see ``lora_settings``.
        biases: the trained biases themselves, of the same layers.
    """
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"{PREFIX}{name}.{LORA_A}"] = a.T
        tensors[f"{PREFIX}{name}.{LORA_B}"] = b.T
    added = _are_added(pairs, changes)
    for name, bias in (changes if added else biases).items():
        tensors[f"{PREFIX}{name}.{BIAS_OF_B if added else BIASES[0]}"] = bias
    return {key: values.detach().cpu().contiguous() for key, values in tensors.items()}


def _are_added(layers: Collection[str], biases: Collection[str]) -> bool:
    return bool(biases) and set(biases) == set(layers)


def _peft_config(model: nn.Module, layers: Mapping[str, Layer], changes: Mapping[str, Change]) -> dict[str, Any]:
    """The content of ``adapter_config.json``."""
    ranks = {name: change.rank for name, change in changes.items()}
    conv1d = not any(isinstance(base_module(layer), nn.Linear) for layer in layers.values())
    return {
        **lora_settings(ranks, _biases(changes), conv1d=conv1d),
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "target_modules": _target_modules(model, set(layers)),
        "use_dora": False,
        "use_rslora": False,
    }


def _whole_modules(model: nn.Module) -> dict[str, nn.Module]:
    """``modules_to_save``, which PEFT replaces by copies: AdapterError if another module uses their parameters."""
    saved = saved_modules(model)
    inside = {id(part) for module in saved.values() for part in module.modules()}
    own = {id(parameter) for module in saved.values() for parameter in module.parameters()}
    for name, module in model.named_modules():
        if id(module) not in inside and any(id(p) in own for p in module.parameters(recurse=False)):
            raise AdapterError(
                f"{name} shares its weight with a module of modules_to_save, which PEFT would copy: save the plain "
                "model instead (rosa.export), or the adapter (rosa.save_adapter)"
            )
    return saved


def _biases(changes: Mapping[str, Change]) -> dict[str, Tensor]:
    """The changes of biases, of the layers that have one."""
    return {name: change.bias for name, change in changes.items() if change.bias is not None}


def _target_modules(model: nn.Module, layers: set[str]) -> list[str]:
    """The layers by the last parts of their names, as people write them; by whole names if others end so too."""
    endings = {name.rpartition(".")[2] for name in layers}
    matched = {name for name in canonical_names(model).values() if name.rpartition(".")[2] in endings}
    return sorted(endings if matched == layers else layers)


def _task(model: Any) -> str | None:
    """PEFT's name of the task, by which its AutoPeftModel classes choose how to load the base.

    None if PEFT's class for the task does not take the model's inputs (Whisper's are not tokens).
    """
    if not (hasattr(model, "can_generate") and model.can_generate()) or model.main_input_name != "input_ids":
        return None
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
