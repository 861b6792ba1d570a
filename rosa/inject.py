"""Wrap a model's layers in adapters, freeze the rest, say what trains; merge and take the adapters out again."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

from torch import nn

from rosa.config import AdapterConfig
from rosa.drawing import SubspaceLayer, draw_subspaces
from rosa.layers import AdapterLayer, is_adaptable, layer_shape
from rosa.methods import methods
from rosa.sharding import whole
from rosa.subspace import resolve_rank

Model = TypeVar("Model", bound=nn.Module)


class AdapterError(ValueError):
    """The adapter's settings or files do not fit the model; the text says which layer or key, and what would."""


def canonical_name(name: str) -> str:
    """A module's name without the wrappers of DDP (``module.``) and torch.compile (``_orig_mod.``)."""
    return ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The adapted layers by canonical name, in the model's order."""
    return {canonical_name(n): m for n, m in model.named_modules() if isinstance(m, AdapterLayer)}


def inject(model: Model, config: AdapterConfig, *, start: bool = True) -> Model:
    """Adapt ``model`` in place and return it: wrap the target layers, freeze all but the adapters' parameters.

    Args:
        model: any model with Linear or Conv1D layers. Load it in float32 and use autocast for speed: 16-bit weights
            work (A and B are float32 then), but a resample or a merge rounds small changes away.
        config: ``RosaConfig`` or ``LoraConfig``.
        start: set A and B; False leaves that to ``start_adapters``, once the model lies where it trains (on a GPU,
            sharded over processes).

    Raises:
        AdapterError: bad settings, no layer matches (the text lists those that exist), a target that cannot
            be adapted, a rank above a layer's full rank, a weight that is not finite. The model is then untouched.
    """
    layers = build_layers(model, config)
    if start:
        _start(layers)
    install_layers(model, layers)
    return model


def start_adapters(model: Model) -> Model:
    """Set A and B of a model that was adapted with ``start=False``; of a sharded one every process calls it.

    Raises:
        AdapterError: a weight holds values that are not finite.
    """
    _start(adapter_layers(model))
    return model


def _start(layers: dict[str, AdapterLayer]) -> None:
    with_values = {name: layer for name, layer in layers.items() if not layer.A.is_meta}  # none: good for counting
    for name, layer in with_values.items():
        with whole(layer):
            if not layer.base.weight.isfinite().all():
                raise AdapterError(f"{name}: its weight holds values that are not finite")
            layer.initialise()
    drawn = [layer for layer in with_values.values() if isinstance(layer, SubspaceLayer)]
    try:
        draw_subspaces(drawn, 0)
    except BaseException:  # out of memory, interrupted: put back what was split off
        for layer in drawn:
            with whole(layer):
                layer.fold()
        raise


def build_layers(model: nn.Module, config: AdapterConfig) -> dict[str, AdapterLayer]:
    """The adapter layers that ``config`` asks for, by module name, without values; the model is not changed.

    Raises:
        AdapterError: see ``inject``.
    """
    if not isinstance(config, AdapterConfig) or config.method not in methods():
        names = " or ".join(known.__name__ for known, _ in methods().values())
        raise AdapterError(f"config must be a {names} of this library, not {config!r}")
    if problems := config.problems():
        raise AdapterError("; ".join(problems))
    if adapter_layers(model):
        raise AdapterError("this model has adapters already: unwrap it first (rosa.unwrap)")
    layer_class = methods()[config.method][1]
    layers = {}
    for name, module in find_targets(model, config.target_modules).items():
        if module.weight.is_meta and hasattr(module, "_hf_hook"):
            raise AdapterError(
                f"{name}: its weight is offloaded by accelerate. Take the model back to memory "
                "(accelerate.hooks.remove_hook_from_submodules(model)), adapt it, and offload the adapted model."
            )
        try:
            rank = resolve_rank(config.rank, *layer_shape(module))
        except ValueError as error:
            raise AdapterError(f"{name}: {error}") from None
        layers[name] = layer_class(canonical_name(name), module, rank, config).train(module.training)
    in_16_bits = [layer for layer in layers.values() if layer.base.weight.dtype.itemsize < 4]
    if any(isinstance(layer, SubspaceLayer) or layer.trains_bias for layer in in_16_bits):
        warnings.warn(
            "adapting 16-bit weights: steps of trained biases and resamples round away small changes (rosa.resample "
            "returns how much); load the model in float32 (dtype=torch.float32) and train under autocast",
            stacklevel=3,
        )
    return layers


def install_layers(model: nn.Module, layers: dict[str, AdapterLayer]) -> None:
    """Put ``layers`` in the place of the modules they wrap, and freeze everything but their own parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
        for parameter in layer.adapter_parameters().values():
            parameter.requires_grad_(True)


def find_targets(model: nn.Module, target_modules: str | list[str] | None) -> dict[str, nn.Linear]:
    """The Linear and Conv1D modules to adapt, by name.

    Args:
        target_modules: a regular expression that must match the whole name; a list of name endings; None for
            all inside the blocks (the members of a ModuleList). A layer that shares its weight with another
            module (GPT-2's lm_head and its embedding) is never adapted, and the output head only when asked.

    Raises:
        AdapterError: a target, or one of the list's endings, matches nothing.
    """
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    candidates = {name: cast(nn.Linear, m) for name, m in model.named_modules() if name and is_adaptable(m)}
    plain = {name: canonical_name(name) for name in candidates}
    shared = {name for name, m in candidates.items() if owners[id(m.weight)] > 1}
    if target_modules is None:
        block_prefixes = tuple(f"{n}." for n, m in model.named_modules() if n and isinstance(m, nn.ModuleList))
        get_head = getattr(model, "get_output_embeddings", None)
        head = get_head() if callable(get_head) else None
        found = {
            name: m for name, m in candidates.items()
            if name.startswith(block_prefixes) and name not in shared and m is not head
        }  # fmt: skip
        missing = [] if found else ["the default (all Linear and Conv1D inside the model's blocks)"]
    else:
        if isinstance(target_modules, str):
            try:
                pattern = re.compile(target_modules)
            except re.error as error:
                raise AdapterError(f"target_modules={target_modules!r} is not a regular expression: {error}") from None
            matches = {target_modules: [name for name in candidates if pattern.fullmatch(plain[name])]}
        else:
            matches = {
                end: [name for name in candidates if f".{plain[name]}".endswith(f".{end}")] for end in target_modules
            }
        missing = [target for target, names in matches.items() if not set(names) - shared]
        wanted = {name for names in matches.values() for name in names}
        found = {name: m for name, m in candidates.items() if name in wanted and name not in shared}
    if missing:
        raise AdapterError(
            f"target_modules: nothing to adapt matches {', '.join(missing)}. "
            f"Linear and Conv1D modules of this model: {_summary(list(candidates)) or 'none'}"
            + (f" (sharing their weight, never adapted: {', '.join(sorted(shared))})" if shared else "")
        )
    return found


def _summary(names: list[str]) -> str:
    """Names with the numbers of repeated blocks folded: ``h.{0..11}.attn.c_attn``."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for name in names:
        first = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = name if first is None else f"{name[: first.start()]}{{}}{name[first.end() :]}"
        numbers[key] += [int(first.group())] if first else []
    return ", ".join(
        key if not seen else key.replace("{}", str(seen[0]) if len(seen) == 1 else f"{{{min(seen)}..{max(seen)}}}")
        for key, seen in numbers.items()
    )


@dataclass(frozen=True)
class LayerCount:
    """One adapted layer: its name, shape m x n, rank and number of trainable parameters."""

    name: str
    shape: tuple[int, int]
    rank: int
    trainable: int


@dataclass(frozen=True)
class ParameterReport:
    """What trains. ``total`` counts the base model without adapters; ``layers`` is empty for a plain model."""

    layers: list[LayerCount]
    trainable: int
    total: int

    def __str__(self) -> str:
        rows = [f"{'layer':<40} {'shape':>13} {'rank':>5} {'trainable':>12}"] if self.layers else []
        for row in self.layers:
            shape = f"{row.shape[0]} x {row.shape[1]}"
            rows.append(f"{row.name:<40} {shape:>13} {row.rank:>5} {row.trainable:>12,}")
        share = self.trainable / self.total if self.total else 0.0
        rows.append(f"trainable {self.trainable:,} of {self.total:,} parameters ({share:.2%})")
        return "\n".join(rows)


def parameter_report(model: nn.Module) -> ParameterReport:
    """Count trainable parameters, per adapted layer and in total."""
    layers = adapter_layers(model)
    rows = [
        LayerCount(
            name, (layer.in_features, layer.out_features), layer.rank,
            sum(p.numel() for p in layer.adapter_parameters().values()),
        )
        for name, layer in layers.items()
    ]  # fmt: skip
    added = sum(layer.A.numel() + layer.B.numel() for layer in layers.values())
    return ParameterReport(
        rows,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=sum(p.numel() for p in model.parameters()) - added,
    )


def merge(model: Model) -> Model:
    """Add every pair to its base weight; the adapters stay and cost nothing in the forward pass."""
    for layer in adapter_layers(model).values():
        layer.merge()
    return model


def unmerge(model: Model) -> Model:
    """Undo ``merge`` to the bit."""
    for layer in adapter_layers(model).values():
        layer.unmerge()
    return model


def unwrap(model: Model) -> Model:
    """Merge for good and put the base modules back: a plain model that knows nothing of adapters."""
    for name, layer in _layers_in_place(model).items():
        layer.merge()
        model.set_submodule(name, layer.base)
    return model


@contextlib.contextmanager
def merged(model: Model) -> Iterator[Model]:
    """The model as a plain one for the length of a ``with`` block, to generate or export; then as it was."""
    layers = _layers_in_place(model)
    merged_before = {name for name, layer in layers.items() if layer.merged}
    try:
        for name, layer in layers.items():
            layer.merge()
            model.set_submodule(name, layer.base)
        yield model
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
            if name not in merged_before:
                layer.unmerge()


def _layers_in_place(model: nn.Module) -> dict[str, AdapterLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, AdapterLayer)}
