"""Modules that train whole beside the adapters, such as a new classification head (``modules_to_save``)."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.layers import AdapterLayer
from rosa.quantised import is_quantised
from rosa.settings import ends_in
from rosa.sharding import is_sharded
from rosa.targets import canonical_names

HEADS = ("classifier", "score", "qa_outputs")  # the usual names of those that begin with random weights
# In the names of transformers' classes that have others too.
TASKS = re.compile("Classification|QuestionAnswering|MultipleChoice|CTC|DoubleHeads|Segmentation|Detection")
KEPT = "_rosa_base_values"  # attribute of such a module: its parameters from before training, on the CPU


def saved_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that the settings of the model's adapters name in ``modules_to_save``, by canonical name."""
    layer = next((module for module in model.modules() if isinstance(module, AdapterLayer)), None)
    return find_modules(model, layer.config.modules_to_save or () if layer is not None else ())


def find_modules(model: nn.Module, endings: Collection[str]) -> dict[str, nn.Module]:
    """The modules whose canonical names end in one of ``endings``, by those names."""
    names, modules = canonical_names(model), dict(model.named_modules())
    return {names[n]: m for n, m in modules.items() if ends_in(names[n], endings)}


def check_modules(model: nn.Module, endings: Collection[str], layers: Collection[str]) -> None:
    """Check ``modules_to_save`` of a model that is about to be adapted.

    Args:
        layers: the canonical names of the layers to adapt.

    Raises:
        AdapterError: an ending matches nothing, or a module without parameters, with a quantised weight or with buffers
            that are a part of its state (which adapter files cannot hold), or one that has a layer to adapt.
    """
    for end in endings:
        found = find_modules(model, [end])
        if not found:
            heads = ", ".join(name for name, _ in model.named_children())
            raise AdapterError(f"modules_to_save: no module's name ends in {end!r:.100}. Outermost modules: {heads}")
        for name, module in found.items():
            parameters = {key for key, _ in module.named_parameters()}
            if is_quantised(module):
                raise AdapterError(f"modules_to_save: {name} holds a quantised weight, which cannot train")
            if not parameters or module.state_dict().keys() - parameters:
                raise AdapterError(f"modules_to_save: {name} has no parameters, or more in its state than parameters")
            if both := [layer for layer in layers if f"{layer}.".startswith(f"{name}.")]:
                raise AdapterError(
                    f"modules_to_save: {name} trains whole, and {both[0]} is to be adapted: leave it out of one of "
                    "modules_to_save and target_modules"
                )


def warn_of_modules(model: nn.Module) -> None:
    """Warn if a head of transformers' models for another task than language does not train, and of modules such as
    BatchNorm: a forward pass in training mode changes buffers that no adapter holds.
    """
    if idle := [name for name, head in _heads(model).items() if not any(p.requires_grad for p in head.parameters())]:
        layer = next(module for module in model.modules() if isinstance(module, AdapterLayer))
        named, do = [*(layer.config.modules_to_save or ()), *idle], "does" if len(idle) == 1 else "do"
        warnings.warn(
            f"{', '.join(idle)} {do} not train: if the weights are new, adapt with modules_to_save={named}",
            stacklevel=3,
        )
    # by the count of batches, which modules that only read their statistics do not have
    if found := [name.rpartition(".")[0] for name, _ in model.named_buffers() if name.endswith("num_batches_tracked")]:
        warnings.warn(
            f"in training mode a forward pass changes the statistics of {', '.join(found[:3])}, which are not a part "
            "of the adapter: keep modules of this kind in eval mode while you train, or save with rosa.export",
            stacklevel=3,
        )


def _heads(model: Any) -> dict[str, nn.Module]:
    """The outermost modules that a model of transformers has beside its base model, with parameters of their own, for a
    task whose head is new. The output of a language model is not, but with CTC.
    """
    found = {name: head for name in HEADS if isinstance(head := getattr(model, name, None), nn.Module)}
    base = getattr(model, "base_model", model)
    if base is not model and TASKS.search(type(model).__name__):
        output = None if "CTC" in type(model).__name__ else model.get_output_embeddings()
        inner = {id(p) for module in (base, output) if module is not None for p in module.parameters()}
        children = ((name, child) for name, child in model.named_children() if child is not base)
        found |= {name: child for name, child in children if any(id(p) not in inner for p in child.parameters())}
    return found


def warn_of_others(
    model: nn.Module, layers: Mapping[str, AdapterLayer], then: str, *, exact: bool = False, stacklevel: int = 3
) -> None:
    """Warn of parameters that train and are not a part of the adapter, such as the base weight.

    Args:
        then: what follows from it.
        exact: whether the base weights of ``layers`` are a part of it.
    """
    own = {id(parameter) for module in saved_modules(model).values() for parameter in module.parameters()}
    for layer in layers.values():
        own |= {id(p) for p in layer.changing_parameters() if exact or p is not layer.base.weight}
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    if others:
        warnings.warn(
            f"{len(others)} parameters train and are not a part of the adapter ({', '.join(others[:3])}), so that "
            f"{then}: freeze them, or name their modules in modules_to_save of the settings",
            stacklevel=stacklevel,
        )


def module_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The parameters of modules that train whole, by name. They share the model's storage."""
    return {f"{name}.{key}": p.detach() for name, module in modules.items() for key, p in module.named_parameters()}


def remember_modules(modules: Mapping[str, nn.Module]) -> None:
    """Keep the values of modules that are about to train whole. A second call does nothing, nor does one on meta.

    Sharded modules keep none.
    """
    for module in modules.values():
        parameters = dict(module.named_parameters())
        if not hasattr(module, KEPT) and not any(p.is_meta or is_sharded(p) for p in parameters.values()):
            setattr(module, KEPT, {key: p.detach().to("cpu", copy=True) for key, p in parameters.items()})


@contextlib.contextmanager
def base_modules(model: nn.Module) -> Iterator[None]:
    """Within a ``with`` block, the modules that train whole have their values from before training.

    Copies of the kept values replace their parameters meanwhile, and those tied to them in other modules.

    Raises:
        AdapterError: their values were not kept, or they are sharded.
    """
    originals: dict[int, nn.Parameter] = {}
    for name, module in saved_modules(model).items():
        kept = getattr(module, KEPT, None)
        # a forward pass of sharded modules gathers their own parameters over the copies that replace them
        if kept is None or any(map(is_sharded, module.parameters())):
            raise AdapterError(
                f"{name} trains whole, and its values from before were not kept: adapt or load the base model with "
                "keep_base=True, and unsharded"
            )
        for key, parameter in module.named_parameters():
            originals[id(parameter)] = nn.Parameter(kept[key].to(parameter), requires_grad=False)
    changed = [
        (module, key, parameter)
        for module in (model.modules() if originals else ())
        for key, parameter in module.named_parameters(recurse=False)
        if id(parameter) in originals
    ]
    try:
        for module, key, parameter in changed:
            setattr(module, key, originals[id(parameter)])
        yield
    finally:
        for module, key, parameter in changed:
            setattr(module, key, parameter)


def forget_modules(modules: Mapping[str, nn.Module]) -> None:
    """Freeze modules that trained whole, and drop what was kept of them."""
    for module in modules.values():
        module.requires_grad_(False)
        if hasattr(module, KEPT):
            delattr(module, KEPT)
