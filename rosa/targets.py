"""Which modules of a model are adapted, by which names, and why others cannot be."""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rosa.errors import AdapterError
from rosa.quantised import has_shape, is_packed, parameter_count, quantisation
from rosa.settings import AdapterConfig, ends_in
from rosa.sharding import is_sharded

log = logging.getLogger(__name__)

PLAIN_FORWARDS = (nn.Linear.forward, Conv1D.forward)  # they compute x W + b and nothing else
WRAPPERS = ("module", "_orig_mod")
BLOCKS = "the default (all Linear and Conv1D inside the model's blocks)"
SHARED = "it shares its weight with another module"
OWN_FORWARD = "its class computes more than x W + b in a forward of its own"
ROUTER = "it chooses experts, and is adapted only if it is named"
STACKED = "its weights, {:.0%} of the model's parameters, are stacked in three dimensions, which no adapter takes"
QUANTISED = (
    "its weight ({}) is quantised, which {} takes: load the model without quantisation, or dequantise it first "
    "(model.dequantize(), where transformers has that for its kind)"
)
COMPUTED = (
    "its weight is computed by a parametrisation (weight_norm, spectral_norm, pruning): make it a plain one first, "
    'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight"), or remove_weight_norm and the like for hooks'
)
OFFLOADED = (
    "its weight is offloaded by accelerate: take the model back to memory "
    "(accelerate.hooks.remove_hook_from_submodules(model)) first, and offload it again afterwards"
)
SHARDED = (
    "the model is sharded already: first adapt it, rosa.inject(model, config, start=False), then fully_shard, then "
    "rosa.start_adapters(model) or rosa.load_adapter"
)


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Each module's name, and that name without the wrappers of DDP (``module``) and torch.compile (``_orig_mod``).

    A wrapper has a single child. A model's own module of such a name has siblings and keeps its name.
    """
    modules, names = dict(model.named_modules()), {"": ""}
    for name in modules:
        if name:
            parent, _, own = name.rpartition(".")
            wrapped = own in WRAPPERS and len(modules[parent]._modules) == 1
            names[name] = names[parent] if wrapped else f"{names[parent]}.{own}".removeprefix(".")
    return names


def find_targets(
    model: nn.Module, target_modules: str | Collection[str] | None, *, quantised: bool = False
) -> dict[str, nn.Linear]:
    """The Linear and Conv1D modules to adapt, by name.

    A warning is logged for each target that is left out, unless the model is on meta, where only shapes are read.

    Args:
        target_modules: a regular expression that must match the whole name (it must be trusted: its run time is not
            bounded); name endings; None or ``all-linear`` for all inside the blocks (the members of a ModuleList). A
            layer that shares its weight with another module (GPT-2's lm_head and its embedding) is never adapted. The
            output head and the routers of experts are adapted only if they are named.
        quantised: take layers with a quantised weight too, except those of GPTQ and AWQ, which have no weight.

    Raises:
        AdapterError: a target, or one of the endings, matches nothing; a named layer cannot be adapted, or one in the
            blocks is quantised (see ``quantised``), parametrised or sharded.
    """
    target_modules = AdapterConfig(target_modules=target_modules).target_modules  # None for all-linear
    candidates = {name: m for name, m in model.named_modules() if name and _is_candidate(m)}
    owners = weight_owners(model)
    shared = {name for name, m in candidates.items() if owners[memory_of(m._parameters.get("weight"))] > 1}
    if target_modules is None:
        head = _output_head(model)
        matches = {BLOCKS: [name for name in _in_blocks(model, candidates) if candidates[name] is not head]}
    else:
        matches = _matches(canonical_names(model), candidates, target_modules)
    wanted = {name for names in matches.values() for name in names}

    left_out: dict[str, list[str]] = defaultdict(list)
    found = {}
    for name, module in candidates.items():
        if name not in wanted:
            continue
        if name in shared:
            left_out[SHARED].append(name)
        elif reason := obstacle(module, quantised=quantised):
            raise AdapterError(f"{name} cannot be adapted: {reason}")
        elif has_own_forward(module):
            if target_modules is not None:
                raise AdapterError(
                    f"{name} cannot be adapted: {OWN_FORWARD} ({type(module).__name__}). Name targets without it."
                )
            left_out[OWN_FORWARD].append(name)
        elif target_modules is None and _is_router(model, name):
            left_out[ROUTER].append(name)
        else:
            found[name] = cast(nn.Linear, module)
    if missing := [target for target, names in matches.items() if not found.keys() & set(names)]:
        raise AdapterError(_nothing_matches(missing, candidates, shared, left_out))
    if not all(module.weight.is_meta for module in found.values()):
        for reason, names in left_out.items():
            log.warning("not adapted: %s: %s", summary(names), reason)
        if target_modules is None:
            warn_of_experts(model)
    return found


def memory_of(parameter: Any) -> int:
    """A number that two parameters share if they are one, or begin at the same address (tied through ``.data``)."""
    return (parameter.data_ptr() if type(parameter) is nn.Parameter else 0) or id(parameter)


def weight_owners(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter, by ``memory_of``."""
    return Counter(memory_of(p) for _, p in model.named_parameters(remove_duplicate=False))


def obstacle(module: nn.Module, *, quantised: bool = False) -> str | None:
    """Why a Linear or Conv1D cannot be adapted, and what to do then; None if it can. See ``find_targets``."""
    if kind := quantisation(module):
        taken = has_shape(module)
        return None if quantised and taken else QUANTISED.format(kind, "only LoRA or (IA)³" if taken else "no method")
    weight = getattr(module, "weight", None)
    if weight is None or torch.nn.parameter.is_lazy(weight):
        return "it has no weight yet: run the model once"
    if is_sharded(weight):
        return SHARDED
    if is_offloaded(module):
        return OFFLOADED
    if any(module._parameters.get(key) is None and getattr(module, key) is not None for key in ("weight", "bias")):
        return COMPUTED
    if weight.dim() != 2:
        return f"its weight has the shape {tuple(weight.shape)}, not that of a matrix"
    return None


def is_offloaded(module: Any) -> bool:
    """Whether accelerate keeps a module's weight elsewhere: what is written into it here would be lost."""
    return hasattr(module, "_hf_hook") and bool(module.weight.is_meta)


def has_own_forward(module: Any) -> bool:
    """Whether a Linear or Conv1D computes something else than x W + b.

    False for a class that computes the same product by other code (Falcon's), or from a quantised weight.
    """
    replaced = vars(module).get("forward")
    if replaced is not None and not hasattr(module, "_hf_hook"):  # accelerate's hooks are allowed
        return getattr(replaced, "__func__", None) is not type(module).forward
    if is_packed(module):
        return False
    return not _is_plain_product(type(module).forward, isinstance(module, nn.Linear))


@functools.cache
def _is_plain_product(forward: Callable[..., Any], transposed: bool) -> bool:
    """Whether a forward method computes x W + b on an object that has only a weight and a bias."""
    if forward in PLAIN_FORWARDS:
        return True
    x = torch.tensor([[[1.0, -2.0]]], device="cpu")
    weight = torch.tensor([[3.0, 0.5, -1.0], [4.0, 7.0, 2.0]], device="cpu")
    some = torch.tensor([5.0, -6.0, 9.0], device="cpu")
    stored = weight.T if transposed else weight
    for bias in (some, None) if transposed else (some,):  # Conv1D always has one
        layer = SimpleNamespace(weight=stored, bias=bias, in_features=2, out_features=3, nf=3)
        try:
            if not torch.equal(forward(layer, x), x @ weight if bias is None else x @ weight + bias):
                return False
        except Exception:  # it uses more than a weight and a bias
            return False
    return True


def _is_candidate(module: nn.Module) -> bool:
    """Whether this is a Linear, a Conv1D, or its replacement in a quantised model (GPTQ's and AWQ's layers)."""
    return isinstance(module, (nn.Linear, Conv1D)) or isinstance(getattr(module, "qweight", None), Tensor)


def _in_blocks(model: nn.Module, names: Iterable[str]) -> list[str]:
    prefixes = tuple(f"{n}." for n, m in model.named_modules() if n and isinstance(m, nn.ModuleList))
    return [name for name in names if name.startswith(prefixes)]


def _output_head(model: nn.Module) -> Any:
    get_head = getattr(model, "get_output_embeddings", None)
    return get_head() if callable(get_head) else None


def _matches(
    plain: dict[str, str], candidates: Iterable[str], target_modules: str | Collection[str]
) -> dict[str, list[str]]:
    """The names that each target matches."""
    if not isinstance(target_modules, str):
        return {end: [n for n in candidates if ends_in(plain[n], [end])] for end in target_modules}
    try:
        pattern = re.compile(target_modules)
    except (re.error, RecursionError, OverflowError) as error:
        raise AdapterError(f"target_modules={target_modules!r:.200} is not a regular expression: {error}") from None
    return {target_modules: [name for name in candidates if pattern.fullmatch(plain[name])]}


def _nothing_matches(
    missing: list[str], candidates: Iterable[str], shared: set[str], left_out: dict[str, list[str]]
) -> str:
    own = left_out[OWN_FORWARD]
    return (
        f"target_modules: nothing to adapt matches {', '.join(missing):.500}. "
        f"Linear and Conv1D modules of this model: {summary(candidates) or 'none'}"
        + (f" (sharing their weight, never adapted: {', '.join(sorted(shared))})" if shared else "")
        + (f" (not adapted: {summary(own)}: {OWN_FORWARD})" if own else "")
    )


def _is_router(model: nn.Module, name: str) -> bool:
    """Whether a layer is, or lies in, what chooses the experts of a token: a router, or a gate beside experts."""
    parts = name.split(".")
    return any(
        "router" in part
        or (part in ("gate", "shared_expert_gate") and hasattr(model.get_submodule(".".join(parts[:i])), "experts"))
        for i, part in enumerate(parts)
    )


def warn_of_experts(model: nn.Module) -> None:
    """Log a warning of the modules in the blocks that stack many experts in one parameter, if there are some."""
    sizes: Counter[str] = Counter()
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd):
            for parameter in module.parameters(recurse=False):
                if parameter.dim() == 3 and min(parameter.shape) > 1:
                    sizes[name] += parameter.numel()
    if names := _in_blocks(model, sizes):
        share = sum(sizes[name] for name in names) / parameter_count(model)
        log.warning("not adapted: %s: %s", summary(names), STACKED.format(share))


def summary(names: Iterable[str]) -> str:
    """Names on one line, with one entry for all repeated blocks: ``h.{0..11}.attn.c_attn``."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for name in names:
        first = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = name if first is None else f"{name[: first.start()]}{{}}{name[first.end() :]}"
        numbers[key] += [int(first.group())] if first else []
    return ", ".join(
        key if not seen else key.replace("{}", str(seen[0]) if len(seen) == 1 else f"{{{min(seen)}..{max(seen)}}}")
        for key, seen in numbers.items()
    )
