"""When a model's subspaces are resampled, and what a resample does to the optimizer's state.

A resample writes the parameters in place. What keeps copies of them does not fit:

- An optimizer with master copies of its own (DeepSpeed, apex's O2) writes the old A and B back in its next step, which
  raises ``AdapterError``. Let it hold the parameters themselves: float32 weights under autocast.
- An average of parameters over steps (EMA) has no meaning across a resample, because A and B belong to another subspace
  afterwards. Begin a new average, or average ``rosa.merged`` weights. Of ``AveragedModel`` a warning says so.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rosa.errors import AdapterError
from rosa.injection import adapter_layers
from rosa.layer_state import check_in_memory
from rosa.optimization import STATE_CHANGES, change_state, check_state, decays_what_must_not, held_by, lacks_rates
from rosa.optimizer_steps import steps_of
from rosa.resampling import SubspaceLayer, resample_layers, subspace_number
from rosa.schedule import AFTER_THE_END, SETTINGS, count_resamples, too_short
from rosa.sharding import reshard

ROUNDING_WARNING = 0.1


def resample(
    model: nn.Module, number: int, optimizer: Any | None = None, *, optimizer_state: str | float = "reset"
) -> float | None:
    """Sample subspace ``number`` (1, 2, …; 0 was sampled at injection) in every layer whose method resamples.

    Args:
        model: an adapted model; parameters are written in place and keep their identity.
        number: decides the directions, with the seed and the layer's name. Increase it by one each time, and save it.
        optimizer: its state of A and B is changed, because moments belong to the old subspace. It keeps the state of
            biases, the step size and the schedule. Gradients of A and B are dropped.
        optimizer_state: what becomes of its state of A and B: ``reset`` or ``keep``, or the share of elements whose
            moments become zero (``ReloraConfig.pruned``).

    Returns:
        How much of the training since the last resample (or since an adapter was loaded) was lost by rounding to 16
        bits: a ratio of Frobenius norms over all layers whose weights have 16 bits. Above a tenth it is a warning.
        Infinity means that nothing was trained. None if no weight has 16 bits.

    Raises:
        AdapterError: no adapters, a number that is not a whole number from 1, an unknown ``optimizer_state``, one that
            the state of this optimizer does not allow, or values that are not finite; nothing is written then.
        RuntimeError: a layer is merged.
    """
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise AdapterError(f"number={number!r} of a resample must be a whole number, at least 1")
    known = optimizer_state in STATE_CHANGES if isinstance(optimizer_state, str) else 0 <= optimizer_state <= 1
    if not known:
        names = ", ".join(STATE_CHANGES)
        raise AdapterError(f"optimizer_state={optimizer_state} is not one of {names}, or a share in [0, 1]")
    if not adapter_layers(model):
        raise AdapterError(
            "this model has no adapters to resample: adapt it first (rosa.inject), and leave rosa.disabled and "
            "rosa.merged before a resample"
        )
    reshard(model)
    check_in_memory(adapter_layers(model).values())
    layers = [layer for layer in adapter_layers(model).values() if isinstance(layer, SubspaceLayer)]
    factors = [factor for layer in layers for factor in (layer.A, layer.B)]
    check_state(optimizer, factors, optimizer_state)
    steps = steps_of(optimizer, layers)
    steps.before_resample(optimizer, optimizer_state)
    resample_layers(layers, number)
    change_state(optimizer, factors, optimizer_state)
    steps.after_resample(number)
    return _rounding_lost(layers)


def _rounding_lost(layers: list[SubspaceLayer]) -> float | None:
    norms = [layer.rounding for layer in layers if layer.rounding is not None]
    if not norms:
        return None
    lost, change = (math.hypot(*values) for values in zip(*norms, strict=True))
    share = lost / change if change else math.inf
    if ROUNDING_WARNING < share < math.inf:
        warnings.warn(
            f"rounding to 16 bits lost {share:.0%} of what was trained since the last resample: load the model in "
            "float32 (dtype=torch.float32) and train under autocast, or resample less often",
            stacklevel=3,
        )
    return share


def _check_holds(optimizer: Any | None, model: nn.Module) -> None:
    """Raise AdapterError if ``optimizer`` lacks all that the adapters add, or an A or B; warn if they train nothing."""
    layers = adapter_layers(model).values()
    own = {id(one) for layer in layers for one in layer.own_parameters().values() if one.requires_grad}
    pairs = {id(one) for layer in layers if isinstance(layer, SubspaceLayer) for one in (layer.A, layer.B)} & own
    if layers and not any(one.requires_grad for layer in layers for one in layer.adapter_parameters().values()):
        warnings.warn(
            "no parameter of the adapters trains: rosa.inject freezes the base model itself; freeze nothing after it",
            stacklevel=3,
        )
    held = own if optimizer is None else held_by(optimizer)
    if (own and not own & held) or pairs - held:
        raise AdapterError(
            f"the optimizer holds {'no parameter' if not own & held else 'only some'} of the adapters: make one of "
            "rosa.parameter_groups(model), after rosa.inject"
        )


class Resampler:
    """Resamples after the epochs or steps that the method's settings name.

    Call ``after_step`` after each optimizer step and ``after_epoch`` after each epoch, once it is validated. Save a
    checkpoint after these calls; a resume from one that was saved before them makes the same call again, once it has
    loaded the states.
    Make each optimizer step within ``rewarmed``, unless the settings have no ``rewarm_steps``. For methods without a
    schedule (LoRA) nothing happens.

    A resume needs ``state_dict`` beside the states of the model and the optimizer: accelerate saves and loads it after
    ``accelerator.register_for_checkpointing(resampler)``.

    Args:
        model: an adapted model.
        optimizer: the optimizer of the model. A resample changes its state of A and B as the settings say. It must
            update the parameters themselves, not master copies of its own. None: there is no such state, as with SGD
            without momentum; moments that an optimizer has all the same would be those of the last subspace.
        config: the settings with which the model was adapted; None: those that its adapters hold. A model without
            adapters has no schedule.

    Attributes:
        number: that of the present subspace: of the resamples so far, those of an adapter that was loaded included.
        step: the optimizer steps so far, as given to ``after_step`` or ``rewarmed``.
        last_step: the last step that ``after_step`` was told, and ``number`` after it; a repeat is known by both.
        resampled_at: ``step`` at the last resample, for ``rewarm_steps``.
        seconds: the duration of the last one.
        rounding_lost: the result of the last one, see ``resample``.

    Raises:
        AdapterError: ``config`` is given, and the model has no adapters or those of another method; or the optimizer
            does not hold each A and B that trains; or parts of the model have other schedules.
    """

    def __init__(self, model: nn.Module, optimizer: Any | None, config: Any | None = None) -> None:
        settings = [layer.config for layer in adapter_layers(model).values()]
        found = {own.method for own in settings}
        if config is None and settings:
            config = settings[0]
        if config is not None and found != {config.method}:
            raise AdapterError(
                f"the settings are those of {config.method}, the model has {', '.join(found) or 'no'} adapters"
            )
        if len({str([getattr(own, key, None) for key in SETTINGS]) for own in settings}) > 1:
            raise AdapterError(
                f"parts of this model were adapted with other {', '.join(SETTINGS)} than others: make a Resampler of "
                "each part"
            )
        _check_holds(optimizer, model)
        if optimizer is not None and decays_what_must_not(optimizer, model):
            warnings.warn(
                "the optimizer's weight decay shrinks A and B, which hold a part of the pretrained weight: make it of "
                "rosa.parameter_groups(model), or without decay (the Trainer takes it by optimizers=(optimizer, None))",
                stacklevel=2,
            )
        if optimizer is not None and lacks_rates(optimizer, model):
            warnings.warn(
                "the optimizer gives B the rate of A, and lr_ratio_b does nothing: make it of "
                "rosa.parameter_groups(model, lr=lr)",
                stacklevel=2,
            )
        self.model = model
        self.optimizer = optimizer
        steps_of(optimizer, adapter_layers(model).values())
        for layer in adapter_layers(model).values():
            if isinstance(layer, SubspaceLayer):
                layer.has_schedule = True
        self.optimizer_state: str | float = getattr(config, "optimizer_state", "reset")
        self.level: str = getattr(config, "level", "never")
        self.every: int = getattr(config, "every", 1)
        self.rewarm_steps: int = getattr(config, "rewarm_steps", 0)
        self.number = subspace_number(adapter_layers(model).values())
        self.step = self.resampled_at = 0
        self.last_step = 0, self.number
        self._entered = False  # ``rewarmed``, since the last resample or ``load_state_dict``
        self._calls: set[str] = set()  # the levels whose call was made, or whose absence was said
        self.seconds = 0.0
        self.rounding_lost: float | None = None

    def after_step(self, step: int, total_steps: int) -> bool:
        """Resample if due after optimizer step ``step`` (from 1) of ``total_steps``; True if it did.

        Called again with the same step, as after each micro-batch, it does nothing.
        """
        if step < self.step:
            warnings.warn(
                f"step {step} after step {self.step}: count the optimizer steps over all epochs, with a Resampler for "
                "each training",
                stacklevel=2,
            )
        self.step = step
        if self.last_step == (step, self.number):
            return False
        self._calls.add("step")
        if self.level == "epoch" and 2 * step > total_steps and self.number == 0 and "epoch" not in self._calls:
            self._calls.add("epoch")
            warnings.warn(
                "this training has not resampled in half of its steps: level='epoch' does so in "
                "resampler.after_epoch(epoch, epochs), after each epoch but the last. In a single epoch, adapt the "
                "model with level='step', every=STEPS",
                stacklevel=2,
            )
        if step == total_steps:
            self._warn_if_never_due("step", total_steps)
        if step > total_steps:
            warnings.warn(f"step {step} of total_steps={total_steps}: {AFTER_THE_END}", stacklevel=2)
        has_resampled = self._resample(self.level == "step" and step % self.every == 0 and 0 < step < total_steps)
        self.last_step = step, self.number
        return has_resampled

    def after_epoch(self, epoch: int, epochs: int) -> bool:
        """Resample if due after epoch ``epoch`` (from 1) of ``epochs``, never after the last; True if it did.

        Raises:
            AdapterError: ``epoch`` is below 1.
        """
        if epoch < 1:
            raise AdapterError(f"epoch={epoch}: call after_epoch with the number of complete epochs, 1 after the first")
        self._calls.add("epoch")
        if self.level == "step" and self.number == 0 and "step" not in self._calls:
            self._calls.add("step")
            warnings.warn(
                "after_epoch does nothing with level='step': call resampler.after_step(step, total_steps) after each "
                "optimizer step instead",
                stacklevel=2,
            )
        if epoch == epochs:
            self._warn_if_never_due("epoch", epochs)
        if epoch > epochs:
            warnings.warn(f"epoch {epoch} of epochs={epochs}: {AFTER_THE_END}", stacklevel=2)
        return self._resample(self.level == "epoch" and epoch % self.every == 0 and epoch < epochs)

    def _warn_if_never_due(self, level: str, count: int) -> None:
        if self.level == level and self.number == 0 and not count_resamples(self, count, count):
            warnings.warn(f"this training never resampled: {too_short(self, count)}", stacklevel=3)

    def state_dict(self) -> dict[str, int]:
        """The counts that a resume needs, as plain numbers."""
        return {"number": self.number, "step": self.step, "resampled_at": self.resampled_at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a ``state_dict``, so that the next resample samples the subspace that is due.

        Raises:
            AdapterError: ``state`` is not one of a ``Resampler``; nothing is changed then.
        """
        if state.keys() != self.state_dict().keys() or not all(type(n) is int and n >= 0 for n in state.values()):
            keys = ", ".join(self.state_dict())
            raise AdapterError(
                f"this is not the state of a Resampler, which has whole numbers for {keys}: {state!r:.200}"
            )
        self.number, self.step, self.resampled_at = state["number"], state["step"], state["resampled_at"]
        self._entered = True  # a resample may come first, before a step
        self._calls = {"epoch", "step"}  # either may have been made before

    def rate_factor(self, step: int) -> float:
        """The factor of the learning rate in optimizer step ``step`` (from 1).

        The ramp after a resample has k / (rewarm_steps + 1) in its k-th step, so that ``rewarm_steps`` steps are below
        the schedule.
        """
        return min(1.0, (step - self.resampled_at) / (self.rewarm_steps + 1)) if self.resampled_at else 1.0

    @contextlib.contextmanager
    def rewarmed(self, step: int) -> Iterator[None]:
        """Within the block, where optimizer step ``step`` is made, learning rates are times ``rate_factor``.

        Raises:
            AdapterError: a scheduler was stepped within the block: step it afterwards.
        """
        factor = self.rate_factor(step)
        groups = [] if self.optimizer is None or factor == 1 else self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        scaled = [rate * factor for rate in rates]
        try:
            for group, rate in zip(groups, scaled, strict=True):
                group["lr"] = rate
            yield
            if [group["lr"] for group in groups] != scaled:
                raise AdapterError("learning rates were changed within rewarmed: step the scheduler after the block")
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
            self.step, self._entered = step, True

    def _resample(self, due: bool) -> bool:
        if not due:
            return False
        start = time.perf_counter()
        if self.rewarm_steps and not self._entered:
            warnings.warn(
                f"rewarm_steps={self.rewarm_steps} needs each optimizer step within resampler.rewarmed(step): else the "
                "learning rate does not rise again after a resample",
                stacklevel=3,
            )
        self.number = max(self.number, subspace_number(adapter_layers(self.model).values())) + 1
        self.resampled_at, self._entered = self.step, False
        self.rounding_lost = resample(self.model, self.number, self.optimizer, optimizer_state=self.optimizer_state)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a resample is rare, and its time is reported
        self.seconds = time.perf_counter() - start
        return True
