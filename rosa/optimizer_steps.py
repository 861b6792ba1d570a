"""A hook on the optimizer's own steps: it counts them, and finds what would undo or distort a resample."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rosa.errors import AdapterError
from rosa.layers import AdapterLayer
from rosa.optimization import held_by, with_inner
from rosa.resampling import SubspaceLayer
from rosa.sharding import gather

CHECKED_STEPS = 10  # Lookahead writes its copies after 5 to 10 steps
# Copies move a factor back by at least this share of the way that a resample moved it, and straight: by the cosine.
RETURNED, STRAIGHT = 0.25, 0.75


class OptimizerSteps:
    """Called after each step of one optimizer. Looks at one factor, A or B, that the optimizer trains.

    Attributes:
        count: the steps that the optimizer has made since it was watched. Steps within a compiled graph do not count,
            and a step that calls the step of its own base class may count twice (PyTorch calls the hooks for both).
    """

    def __init__(self) -> None:
        self.count = 0
        self._layer: weakref.ref[SubspaceLayer] | None = None
        self._name = ""
        self._used: tuple[Tensor, int] | None = None  # the gradient of the last step, and its version
        self._numbers: dict[tuple[int, str], int] = {}  # in the groups, after ``_numbers_at`` steps
        self._numbers_at = 0
        self._before: Tensor | None = None  # the factor, during a resample
        self._change: tuple[Tensor, Tensor, int] | None = None  # before and after the last resample, and its number
        self._returned: list[Tensor] = []  # for each step looked at: whether it moved the factor back
        self._warned: set[str] = set()

    def __reduce__(self) -> Any:
        return OptimizerSteps, ()  # a copy or a file of the optimizer begins to count again

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self.count += 1
        self._note_gradient()
        if self._change is not None:
            self._look_at_copies(*self._change)
            if len(self._returned) == CHECKED_STEPS:
                self._refuse_copies(optimizer)

    def watch(self, optimizer: Any, layers: Iterable[SubspaceLayer]) -> None:
        """Look at the first factor of ``layers`` that ``optimizer`` trains, if it does not already."""
        held = held_by(optimizer)
        factors = ((layer, name, getattr(layer, name)) for layer in layers for name in ("A", "B"))
        trained = ((layer, name) for layer, name, factor in factors if factor.requires_grad and id(factor) in held)
        layer, name = next(trained, (None, ""))
        if layer is not None and (self._layer is None or self._layer() is not layer or self._name != name):
            self._layer, self._name, self._change = weakref.ref(layer), name, None
            self._note_gradient()
            self._note_numbers(optimizer)

    def before_resample(self, optimizer: Any, change: str | float) -> None:
        """Warn, once, of gradients that no step has used, and of counts that do not begin again as the state does."""
        if (factor := self._factor()) is None:
            return
        self._refuse_copies(optimizer)
        grad, used = factor.grad, self._used
        is_used = used is not None and used[0] is grad and used[1] == grad._version
        if self.count and grad is not None and not is_used and gather(grad).any():
            self._warn_once(
                "a resample dropped gradients that no optimizer step had used. Resample after optimizer.step(), and "
                "count optimizer steps, not micro-batches"
            )
        steps = self.count - self._numbers_at
        before = self._note_numbers(optimizer)
        known = self._numbers if steps > 1 else before  # some optimizers add their count in the first step
        counters = {key[1] for key in known if self._numbers.get(key, 0) - before.get(key, 0) == steps > 0}
        if change == "reset" and counters:
            self._warn_once(
                f"{type(with_inner(optimizer)[-1]).__name__} counts steps per group ({', '.join(sorted(counters))}). A "
                "resample resets the moments of A and B but not this count, so the next steps may be many times too "
                "large. Use an optimizer that counts steps per parameter, such as torch.optim.AdamW"
            )
        self._change = None
        self._before = gather(factor).clone() if len(self._returned) < CHECKED_STEPS else None

    def after_resample(self, number: int) -> None:
        """Note what the resample wrote, to compare it with what the next steps leave of it."""
        factor, before = self._factor(), self._before
        if factor is not None and before is not None:
            after = gather(factor).clone()
            if 0 < after.norm() < 2 * (after - before).norm():  # otherwise a training step may look like a return
                self._change = before, after, number
        self._before = None

    def _look_at_copies(self, before: Tensor, after: Tensor, number: int) -> None:
        """Note whether the factor returns to its values from before the resample, without waiting for the device.

        An earlier state that was loaded brings the number of its subspace with it.
        """
        factor, layer = self._factor(), None if self._layer is None else self._layer()
        if factor is None or layer is None:
            return
        back, moved = before - after, gather(factor).to(after) - after
        along = (moved * back).sum() / back.norm()
        returned = (along > RETURNED * back.norm()) & (along > STRAIGHT * moved.norm())
        self._returned.append(returned & (layer.number.to(returned.device) == number))

    def _refuse_copies(self, optimizer: Any) -> None:
        """Raise AdapterError if a step that was looked at moved the factor back."""
        layer = None if self._layer is None else self._layer()
        if layer is not None and self._change is not None and self._returned and torch.stack(self._returned).any():
            self._returned, self._change = [], None
            raise AdapterError(
                f"{type(optimizer).__name__} wrote values from before the resample into {layer.name}.{self._name}. It "
                "keeps copies of the parameters, and the model computes another function since then. Use an optimizer "
                "that updates the parameters themselves (torch.optim.AdamW), or adapt the model with level='never'"
            )
        if len(self._returned) == CHECKED_STEPS:
            self._change = None

    def _factor(self) -> Tensor | None:
        layer = None if self._layer is None else self._layer()
        return None if layer is None else getattr(layer, self._name)

    def _note_gradient(self) -> None:
        factor = self._factor()
        grad = None if factor is None else factor.grad
        self._used = None if grad is None else (grad, grad._version)

    def _note_numbers(self, optimizer: Any) -> dict[tuple[int, str], int]:
        """Note the whole numbers in the groups, and return those of the last call."""
        before, groups = self._numbers, enumerate(optimizer.param_groups)
        self._numbers = {(i, key): value for i, group in groups for key, value in group.items() if type(value) is int}
        self._numbers_at = self.count
        return before

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=4)


def steps_of(optimizer: Any | None, layers: Iterable[AdapterLayer]) -> OptimizerSteps:
    """What watches the steps of ``optimizer``, registered on it by the first call.

    Where an optimizer wraps another one, the outermost one that has hooks is watched. Without one (None, or an
    optimizer that is not PyTorch's) nothing is counted or found.
    """
    resampling = [layer for layer in layers if isinstance(layer, SubspaceLayer)]
    holders = [] if optimizer is None or not resampling else with_inner(optimizer)
    for one in holders:
        if (hooks := getattr(one, "_optimizer_step_post_hooks", None)) is not None:
            steps = next((hook for hook in hooks.values() if isinstance(hook, OptimizerSteps)), None)
            if steps is None:
                steps = OptimizerSteps()
                one.register_step_post_hook(steps)
            steps.watch(one, resampling)
            return steps
    return OptimizerSteps()
