"""Wrap a model's layers in adapters and freeze the rest; merge and remove the adapters."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import sys
import warnings
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from rosa.checksums import note_base, remember_base
from rosa.errors import AdapterError
from rosa.hooks import StandIn, replaced_layers
from rosa.kept_base import KeptBase, is_rounded
from rosa.layer_state import check_in_memory
from rosa.layers import AdapterLayer
from rosa.methods import methods
from rosa.quantised import NO_MERGE, check_trainable
from rosa.saved_modules import check_modules, forget_modules, remember_modules, saved_modules, warn_of_modules
from rosa.settings import AdapterConfig, LowRankConfig
from rosa.sharding import max_abs, reshard
from rosa.targets import canonical_names, find_targets

Model = TypeVar("Model", bound=nn.Module)


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """The adapted layers in use by canonical name, in the model's order."""
    names = canonical_names(model)
    return {names[n]: m for n, m in model.named_modules() if isinstance(m, AdapterLayer) and m.in_use}


def inject(model: Model, config: AdapterConfig, *, start: bool = True, keep_base: bool = True) -> Model:
    """Adapt ``model`` in place and return it: wrap the target layers, freeze everything but the adapters' parameters.

    ``model.save_pretrained`` raises afterwards: ``rosa.save_adapter`` and ``rosa.export`` write what can be loaded.

    Args:
        model: any model with Linear or Conv1D layers. Load it in float32 and use autocast for speed. 16-bit weights
            work (the parameters that a method adds are float32), but a resample or a merge rounds small changes away.
            On quantised layers (bitsandbytes, torchao) LoRA and (IA)³ train, without biases, and do not merge.
        config: a method's settings, such as ``RosaConfig`` or ``LoraConfig``; the adapters keep a copy.
        start: set the adapters' parameters. If False, call ``start_adapters`` once the model is on its device (a GPU,
            or sharded over processes).
        keep_base: keep what training writes over, for ``rosa.disabled`` and for adapter files that hold factors in the
            place of ROSA's whole W_f. LoRA writes over nothing. A trained bias is copied. ROSA's pairs are copied as
            they are sampled: rank · (m + n) numbers of a layer at first, up to twice as many more with each resample,
            and never more than the weight. Weights in 16 bits are copied whole (``rosa/kept_base.py``). The copies are
            in the memory of the CPU, on each process. A resample takes longer by two QR factorisations of the pairs.

    Raises:
        AdapterError: bad settings, no layer matches (the text lists those that exist), a target that cannot be adapted
            (quantised, except by the methods above, parametrised, sharded, of a class with another forward), nothing
            to train, a rank above a layer's full rank, a weight that is not finite, a model of the library peft. The
            model is not changed then.
    """
    layers = build_layers(model, config, keep_base=keep_base)
    check_trainable(model, layers.values())
    if start:
        _start(layers)
    install_layers(model, layers)
    warn_of_modules(model)
    if start and keep_base:
        remember_modules(saved_modules(model))
    return model


def train_only(model: Model, target_modules: str | Collection[str]) -> Model:
    """Train the weights and biases of some layers, without adapters, and freeze everything else, in place.

    That is the ceiling of every adapter on these layers. Embeddings, norms and the output head do not train.

    Args:
        target_modules: as in ``AdapterConfig``; ``all-linear`` is what adapters adapt by default.

    Raises:
        AdapterError: see ``inject``; the model is not changed then.
    """
    targets = AdapterConfig(target_modules=target_modules)
    _check(model, targets)
    layers = find_targets(model, targets.target_modules)
    model.requires_grad_(False)
    for module in layers.values():
        module.requires_grad_(True)
    return model


def start_adapters(model: Model) -> Model:
    """Set the adapters' parameters of a model that was adapted with ``start=False``.

    Every process of a sharded model must call it.

    Raises:
        AdapterError: a weight holds values that are not finite; or the adapters have values already, which would be
            lost. Nothing is changed then.
    """
    check_not_of_peft(model, "its adapters have values already")
    layers = adapter_layers(model)
    if any(layer.has_values for layer in layers.values()):
        raise AdapterError("the adapters have values already: start_adapters belongs to inject with start=False")
    _start(layers)
    if any(layer.kept is not None for layer in layers.values()):
        remember_modules(saved_modules(model))
    return model


def _start(layers: dict[str, AdapterLayer]) -> None:
    with_values = {name: layer for name, layer in layers.items() if not layer.base.weight.is_meta}  # meta: for counts
    for name, layer in with_values.items():
        if not layer.quantised and not math.isfinite(max_abs(layer.base.weight)):
            raise AdapterError(f"{name}: its weight holds values that are not finite")
    if with_values:
        remember_base(with_values.values(), again=True)
        found = list(with_values.values())
        type(found[0]).initialise_all(found)
        for layer in found:
            layer.has_values = True


def build_layers(
    model: nn.Module,
    config: AdapterConfig,
    names: Collection[str] | None = None,
    *,
    ranks: Mapping[str, Any] | None = None,
    keep_base: bool = True,
) -> dict[str, AdapterLayer]:
    """The adapter layers that ``config`` asks for, by module name, without values; the model is not changed.

    Args:
        names: canonical names of the layers to adapt, instead of ``config.target_modules``.
        ranks: ranks of single layers, by canonical name, where ``config.rank`` is an int.
        keep_base: see ``inject``.

    Raises:
        AdapterError: see ``inject``.
    """
    if not isinstance(config, AdapterConfig) or config.method not in methods():
        known = " or ".join(sorted(settings.__name__ for settings, _ in methods().values()))
        raise AdapterError(f"config must be a {known} of this library, not {config!r}")
    _check(model, config)
    config = dataclasses.replace(config)  # a later change by the caller must not reach the model
    layer_class = methods()[config.method][1]
    plain, layers = canonical_names(model), {}
    targets = config.target_modules if names is None else "|".join(map(re.escape, names))
    for name, module in find_targets(model, targets, quantised=layer_class.takes_quantised).items():
        try:
            own = _with_rank(config, (ranks or {}).get(plain[name]))
            layers[name] = layer_class(plain[name], module, own).train(module.training)
            layers[name].kept = KeptBase() if keep_base else None
            layers[name].register_load_state_dict_pre_hook(note_base)  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise AdapterError(f"{name}: {error}") from None
    check_modules(model, config.modules_to_save or (), [plain[name] for name in layers])
    if not any(layer.adapter_parameters() for layer in layers.values()):
        raise AdapterError(
            f"{config.label or config.method} with bias={config.bias} has nothing to train: none of the "
            f"{len(layers)} layers to adapt has a bias"
        )
    written = [layer.base.weight for layer in layers.values() if layer.rewrites_base]
    written += [layer.base.bias for layer in layers.values() if layer.trains_bias]
    if any(map(is_rounded, written)):
        warnings.warn(
            "adapting 16-bit weights: updates of trained biases and resamples round small changes away (rosa.resample "
            "returns how much); load the model in float32 (dtype=torch.float32) and train under autocast",
            stacklevel=3,
        )
    return layers


def _with_rank(config: AdapterConfig, rank: Any) -> AdapterConfig:
    """The settings of a layer with a rank of its own; ``config`` itself if there is none."""
    if rank is None or not isinstance(config, LowRankConfig) or not isinstance(config.rank, int) or rank == config.rank:
        return config
    return dataclasses.replace(config, rank=rank)


def _check(model: nn.Module, config: AdapterConfig) -> None:
    """Raise AdapterError for bad settings, and for a model that has adapters."""
    if problems := config.problems():
        raise AdapterError("; ".join(problems))
    check_not_of_peft(model, "merge them first (merge_and_unload)")
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise AdapterError("DistributedDataParallel would not exchange the adapters' gradients: adapt first, then wrap")
    if adapter_layers(model):
        raise AdapterError("this model has adapters already: unwrap it first (rosa.unwrap)")


def check_not_of_peft(model: nn.Module, way_out: str) -> None:
    """Raise AdapterError if ``model`` is or contains a model or layer of the library peft, which is not imported."""
    peft, tuners = sys.modules.get("peft"), sys.modules.get("peft.tuners.tuners_utils")
    kinds = [getattr(peft, "PeftModel", None), getattr(tuners, "BaseTunerLayer", None)]
    if any(isinstance(module, kind) for kind in kinds if kind is not None for module in model.modules()):
        raise AdapterError(f"this model has adapters of the library peft: {way_out}")


def install_layers(model: nn.Module, layers: dict[str, AdapterLayer]) -> None:
    """Replace the wrapped modules by ``layers``, and freeze everything but the adapters' parameters."""
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
        layer.train_adapter(True)
    for module in saved_modules(model).values():
        module.requires_grad_(True)
    for module in _savers(model):
        module.save_pretrained = _GuardedSave(module)


class _GuardedSave:
    """``save_pretrained`` of one adapted model, whose names of weights ``from_pretrained`` does not know.

    It refuses, except for a checkpoint of the Trainer, which resumes from it. A copy of the model has its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __reduce__(self) -> tuple[type, tuple[nn.Module | None]]:
        return type(self), (self._model(),)

    def __call__(self, save_directory: str | Path, *args: Any, **options: Any) -> Any:
        model: Any = self._model()
        adapted = any(isinstance(module, AdapterLayer | StandIn) for module in model.modules())
        if adapted and not re.fullmatch(r"checkpoint-\d+", Path(save_directory).name):
            raise AdapterError(
                "save_pretrained (save_model of the Trainer) would write an adapted model, which from_pretrained loads "
                "with random weights: call rosa.save_adapter(model, folder), or rosa.export(model, folder) for a plain "
                "model"
            )
        return type(model).save_pretrained(model, save_directory, *args, **options)


def _savers(model: nn.Module) -> list[Any]:
    """The model and the modules in it that have a ``save_pretrained``."""
    return [module for module in model.modules() if hasattr(type(module), "save_pretrained")]


def merge(model: Model) -> Model:
    """Add the adapters' changes to the base modules. The adapters stay, and the forward pass costs nothing more.

    Copies of the changed weights and biases are kept for ``unmerge``.

    Raises:
        AdapterError: a weight is quantised or offloaded; or a model of the library peft. Nothing is changed then.
    """
    for layer in layers_in_place(model, to_merge=True).values():
        layer.merge()
    return model


def unmerge(model: Model) -> Model:
    """Undo ``merge`` to the bit."""
    layers = [layer for layer in layers_in_place(model).values() if layer.merged]
    check_in_memory(layers)
    for layer in layers:
        layer.unmerge()
    return model


def unwrap(model: Model) -> Model:
    """Merge for good and put the base modules back: a plain model without adapters.

    No weight is copied. All parameters are frozen afterwards, also the biases and modules that trained;
    ``model.requires_grad_(True)`` trains everything.

    Raises:
        AdapterError: see ``merge``.
    """
    layers = layers_in_place(model, to_merge=True)
    forget_modules(saved_modules(model))
    for name, layer in layers.items():
        layer.merge(keep=False)
        layer.train_adapter(False)
        model.set_submodule(name, layer.base)
    for module in _savers(model):
        vars(module).pop("save_pretrained", None)
    return model


@contextlib.contextmanager
def merged(model: Model) -> Iterator[Model]:
    """The model as a plain one within a ``with`` block, to generate. Afterwards it is as before, to the bit.

    Copies of the changed weights and biases are kept meanwhile.

    Raises:
        AdapterError: see ``merge``.
    """
    layers = layers_in_place(model, to_merge=True)
    merged_before = {name for name, layer in layers.items() if layer.merged}
    try:
        for layer in layers.values():
            layer.merge()
        with without_adapters(model):
            yield model
    finally:
        for name, layer in layers.items():
            if name not in merged_before:
                layer.unmerge()


@contextlib.contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """For the length of a ``with`` block the base modules, with their present weights, replace the adapter layers."""
    layers = layers_in_place(model)
    with replaced_layers(model, layers, {name: layer.base for name, layer in layers.items()}):
        yield


def layers_in_place(model: nn.Module, *, to_merge: bool = False) -> dict[str, AdapterLayer]:
    """The adapted layers by module name, resharded: values written into gathered parameters would be lost.

    Raises:
        AdapterError: a model of the library peft, whose adapters only its own methods merge, disable and remove; with
            ``to_merge``, a quantised or offloaded weight.
    """
    check_not_of_peft(
        model,
        "use the methods of that model, such as merge_adapter, unmerge_adapter, merge_and_unload and disable_adapter",
    )
    reshard(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, AdapterLayer)}
    if to_merge:
        check_in_memory(layers.values())
    if to_merge and any(isinstance(module, StandIn) for module in model.modules()):
        raise AdapterError("the adapters are disabled: leave rosa.disabled before they are merged or exported")
    if to_merge and (fixed := [name for name, layer in layers.items() if layer.quantised]):
        raise AdapterError(f"{fixed[0]}: {NO_MERGE}")
    return layers
