"""Save a ROSA adapter of a PEFT model as a LoRA adapter, with the state to train on as ROSA beside it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from rosa.errors import AdapterError
from rosa.files import CONFIG_FILE, MODEL_FILE, keep_apart, replace_files
from rosa.integrations.peft.adapter import RosaAdapter
from rosa.integrations.peft.layer import RosaLinear
from rosa.integrations.peft.lora_files import check_size, lora_settings, lora_tensors
from rosa.kept_base import Pair, cut_to_rank, joined, rank_of_share
from rosa.peft_files import WEIGHTS_FILE

STATE_FOLDER = "rosa"


@torch.no_grad()
def save_as_lora(folder: str | Path, model: Any, rank: int | float | None = None, adapter_name: str = "default") -> int:
    """Write a ROSA adapter as a LoRA adapter, which ``PeftModel.from_pretrained(base, folder)`` loads without ``rosa``.

    The folder ``rosa`` in it holds the ROSA adapter itself, in PEFT's files. Where this library is installed,
    ``PeftModel.from_pretrained(base, folder, subfolder="rosa", is_trainable=True)`` trains on, in the subspace in which
    the training was. Delete that folder where nobody will.

    Args:
        folder: made if missing.
        model: what ``get_peft_model`` or ``PeftModel.from_pretrained`` returned; it is not changed.
        rank: None writes the change W − W_0 as it is, of rank 2 R K at most after K subspaces. An int cuts the rank of
            each layer to it, a share in (0, 1] to the least rank that keeps this share of the squared Frobenius norm.
        adapter_name: which adapter.

    Returns:
        The largest rank of all layers.

    Raises:
        AdapterError: no such ROSA adapter, a bad rank, the factors are no smaller than the weights themselves, or the
            folder holds a model.
    """
    keep_apart(Path(folder), MODEL_FILE)
    adapters = _adapters(model, adapter_name)
    if isinstance(rank, bool) or (rank is not None and not (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1)):
        raise AdapterError(f"rank={rank} must be an int of at least 1 or a share in (0, 1], such as 0.99")
    pairs = {name: _cut(adapter, rank) for name, adapter in adapters.items()}
    largest = max(a.shape[1] for a, _ in pairs.values())
    check_size(
        pairs.values(),
        "Write the plain model (model.merge_and_unload().save_pretrained(folder)) or the ROSA adapter "
        "(model.save_pretrained(folder)), or cut the change, by rank=0.99 or",
    )
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    others = {key: values for key, values in state.items() if ".rosa_layers." not in key}  # modules_to_save
    bases = {f"base_model.model.{name}.base_layer.weight": adapter.host for name, adapter in adapters.items()}
    # For a resized vocabulary PEFT adds the weights of embeddings and head. The pair of an adapted one is W − W_0.
    others |= {key: host.base_weight for key, host in bases.items() if key in others}
    config = model.peft_config[adapter_name]
    folder = Path(folder)
    changes = {name: adapter.bias_change for name, adapter in adapters.items() if adapter.bias_change is not None}
    biases = {name: adapters[name].unmerged_bias + change for name, change in changes.items()}
    conv1d = not any(adapter.transposed for adapter in adapters.values())
    lora = LoraConfig(
        **lora_settings({name: a.shape[1] for name, (a, _) in pairs.items()}, changes, conv1d=conv1d),
        target_modules=list(pairs),
        modules_to_save=config.modules_to_save,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
    )
    base = type(model.get_base_model())
    # By the task, or by this, PEFT's AutoPeftModel classes find the base.
    mapping = None if config.task_type else {"base_model_class": base.__name__, "parent_library": base.__module__}
    writers = _writers(folder / STATE_FOLDER, config, state, mapping)
    replace_files(writers | _writers(folder, lora, others | lora_tensors(pairs, changes, biases), mapping))
    return largest


def _adapters(model: Any, adapter_name: str) -> dict[str, RosaAdapter]:
    """The adapter's layers by their module's name in the base model."""
    found = {
        module.name: module.rosa_layers[adapter_name]
        for module in model.modules()
        if isinstance(module, RosaLinear) and adapter_name in module.rosa_layers
    }
    if not found:
        known = ", ".join(getattr(model, "peft_config", {}))
        raise AdapterError(f"this model has no ROSA adapter {adapter_name!r} (its adapters of PEFT: {known or 'none'})")
    return found


def _cut(adapter: RosaAdapter, rank: int | float | None) -> Pair:
    """W − W_0 as A (m, r) and B (r, n), without the singular values that are rounding."""
    a, b = cut_to_rank(*joined([(adapter.A, adapter.B), (adapter.left, adapter.right)]))
    if isinstance(rank, float):
        rank = rank_of_share(a.double().square().sum(0).square(), rank)  # of S², because A is U √S
    return a[:, :rank], b[:rank]


def _writers(
    folder: Path, config: Any, tensors: dict[str, Tensor], mapping: dict[str, str] | None
) -> dict[Path, Callable[[Path], object]]:
    """What writes each file of one of PEFT's folders, see ``replace_files``."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {key: values.detach().cpu().clone(memory_format=torch.contiguous_format) for key, values in tensors.items()}
    config = copy.copy(config)
    config.inference_mode = True
    with tempfile.TemporaryDirectory() as elsewhere:
        config.save_pretrained(elsewhere, auto_mapping_dict=mapping)  # PEFT names the file itself
        text = (Path(elsewhere) / CONFIG_FILE).read_text()
    return {
        folder / WEIGHTS_FILE: lambda path: save_file(whole, path, metadata={"format": "pt"}),
        folder / CONFIG_FILE: lambda path: path.write_text(text),
    }
