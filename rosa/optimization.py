"""What adapters ask of an optimizer: groups of parameters, and what becomes of its state at a resample."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.injection import adapter_layers
from rosa.sharding import gather

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")  # of Adam, Lion; of SGD, Muon
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")  # of Adam
WEIGHTS = ("z", "p0", "ax")  # copies of the parameter: of ScheduleFree, Prodigy, ASGD


def parameter_groups(model: nn.Module, **defaults: Any) -> list[dict[str, Any]]:
    """The trained parameters for an optimizer of torch, grouped by what their layers ask of it.

        settings = dict(lr=1e-3, weight_decay=0.01)
        optimizer = torch.optim.AdamW(rosa.parameter_groups(model, **settings), **settings)

    ROSA asks for no weight decay of A and B, which hold a part of the pretrained weight, LoRA+ for another rate of B.

    Args:
        defaults: settings that the optimizer gets for all parameters; a layer that asks for the same needs no group.

    Returns:
        One group for each set of settings. Those with the rate of all parameters come first.

    Raises:
        AdapterError: a layer asks for a multiple of the learning rate, and ``lr`` is not given.
    """
    wanted = _wanted(model)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            own = _resolved(wanted.get(id(parameter), {}), defaults)
            own = {key: value for key, value in own.items() if defaults.get(key) != value}
            groups.setdefault(tuple(sorted(own.items())), {"params": [], **own})["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: "lr" in group)


def decays_what_must_not(optimizer: Any, model: nn.Module) -> bool:
    """Whether the optimizer has weight decay for a parameter whose layer asks for none."""
    wanted = _wanted(model)
    decayed = (
        parameter for group in optimizer.param_groups if group.get("weight_decay") for parameter in group["params"]
    )
    return any(wanted.get(id(parameter), {}).get("weight_decay") == 0 for parameter in decayed)


def lacks_rates(optimizer: Any, model: nn.Module) -> bool:
    """Whether parameters with a rate of their own, such as LoRA+'s B, have that of the others in the optimizer."""
    wanted: dict[bool, set[float]] = {True: set(), False: set()}
    rates = {id(p): group.get("initial_lr", group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    for parameter, options in _wanted(model).items():
        if rates.get(parameter) is not None:  # Adafactor finds its own
            wanted["lr_scale" in options].add(float(rates[parameter]))
    return bool(wanted[True] & wanted[False])


def _wanted(model: nn.Module) -> dict[int, dict[str, float]]:
    """What the layers ask of an optimizer, by the id of the parameter."""
    return {
        id(parameter): layer.optimizer_options(name)
        for layer in adapter_layers(model).values()
        for name, parameter in layer.adapter_parameters().items()
    }


def held_by(optimizer: Any) -> set[int]:
    """The ids of the parameters that an optimizer updates."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _resolved(wanted: dict[str, float], defaults: dict[str, Any]) -> dict[str, float]:
    """A layer's wishes with the learning rate itself in the place of ``lr_scale``."""
    if "lr_scale" not in wanted:
        return wanted
    if "lr" not in defaults:
        raise AdapterError("parameter_groups needs lr: a layer asks for a multiple of the learning rate")
    rest = {key: value for key, value in wanted.items() if key != "lr_scale"}
    return {**rest, "lr": defaults["lr"] * wanted["lr_scale"]}


def _moments(optimizer: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    state = optimizer.state.get(parameter, {})
    return {name: v for name, v in state.items() if isinstance(v, Tensor) and v.shape == parameter.shape}


def _reset(optimizer: Any, parameter: nn.Parameter) -> None:
    """Drop the state. SGD's momentum becomes zero instead: fused, it takes no group in which a part has none.

    The curvature of LBFGS is that of all parameters, in the state of the first one.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()
    state = optimizer.state.pop(parameter, {})
    if state.keys() == {"momentum_buffer"} and state["momentum_buffer"] is not None:  # RMSprop's is one part of several
        optimizer.state[parameter] = {"momentum_buffer": state["momentum_buffer"].zero_()}


def _prune(optimizer: Any, parameter: nn.Parameter, share: float) -> None:
    """A ``share`` of the elements, those with the smallest first moments, get zero moments; the count of steps goes on.

    Both moments of an element go together: a first moment over a second one of zero would be a step of m / ε. No bias
    correction makes up for zeros: after many steps the t-th one from here is (1 − β₁ᵗ) / √(1 − β₂ᵗ) times as long as
    with it, for 0.9 and 0.999 3.2 times at first, 6.6 after 12 steps, 3.2 after 100 and 2.3 after 200.
    """
    moments = _moments(optimizer, parameter)
    count = round(share * parameter.numel())
    for first in [values for name, values in moments.items() if name not in SECOND_MOMENTS and count]:
        kept = first.abs() > float(gather(first).abs().flatten().kthvalue(count).values)
        for values in moments.values():
            values.mul_(kept)


STATE_CHANGES: dict[str, Callable[[Any, nn.Parameter], None]] = {
    "reset": _reset,
    "keep": lambda optimizer, parameter: None,
}


def check_state(optimizer: Any | None, parameters: Iterable[nn.Parameter], change: str | float) -> None:
    """Raise AdapterError if ``change_state`` could not change the optimizer's moments of ``parameters``.

    Refused are codes of 8 bits, in which a zero is not a moment of zero; factors of the moments; moments of unknown
    names; the curvature of LBFGS; and copies of A and B, which only a reset drops.
    """
    if optimizer is None or change == "reset":
        return
    for one, parameter in itertools.product(with_inner(optimizer), parameters):
        moments = _moments(one, parameter)
        holder = one._params[0] if isinstance(one, torch.optim.LBFGS) else parameter
        for name, value in one.state.get(holder, {}).items():
            if name in WEIGHTS and name in moments:
                raise AdapterError(
                    f"the state '{name}' of {type(one).__name__} holds A and B of the old subspace: use "
                    "optimizer_state=reset, or another optimizer"
                )
            if change in ("keep", 0):
                continue
            if not isinstance(value, Tensor) or value.numel() == 1:
                continue
            if name not in moments or name not in FIRST_MOMENTS + SECOND_MOMENTS or not value.is_floating_point():
                raise AdapterError(
                    f"a resample cannot change the state '{name}' of {type(one).__name__}, which does not hold a "
                    "known moment of each element: use optimizer_state=reset or keep, ReLoRA with pruned=0, or "
                    "torch.optim.AdamW"
                )


def change_state(optimizer: Any | None, parameters: Iterable[nn.Parameter], change: str | float) -> None:
    """Drop the gradients of resampled ``parameters`` and change their optimizer state, in place.

    Args:
        change: one of ``STATE_CHANGES``, or the share of moments that become zero.
    """
    apply = STATE_CHANGES[change] if isinstance(change, str) else functools.partial(_prune, share=change)
    holders = [] if optimizer is None else with_inner(optimizer)
    for parameter in parameters:
        parameter.grad = None
        for holder in holders:
            apply(holder, parameter)


def with_inner(optimizer: Any) -> list[Any]:
    """The optimizer and those that it wraps and that keep its state (ZeroRedundancyOptimizer, SAM)."""
    found = [optimizer]
    for holder in found:  # it grows: accelerate wraps the wrapper
        inner = (one for one in vars(holder).values() if isinstance(one, torch.optim.Optimizer))
        found += [one for one in inner if all(one is not other for other in found)]
    return found
