"""``RosaModel``: PEFT's tuner for ROSA, which wraps layers and resamples the active adapter."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from numbers import Integral
from types import SimpleNamespace
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import register_peft_method
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rosa.errors import AdapterError
from rosa.integrations.peft.adapter import RosaAdapter
from rosa.integrations.peft.config import RosaConfig
from rosa.integrations.peft.layer import RosaLinear
from rosa.integrations.peft.quantised import dequantised
from rosa.layers import AdapterLayer, layer_shape
from rosa.optimization import held_by
from rosa.optimizer_steps import steps_of
from rosa.quantised import is_quantised, quantisation
from rosa.resampler import Resampler
from rosa.resampling import warn_if_never_resampled
from rosa.sharding import is_sharded
from rosa.targets import (
    OWN_FORWARD,
    SHARED,
    find_targets,
    has_own_forward,
    memory_of,
    obstacle,
    summary,
    warn_of_experts,
    weight_owners,
)

log = logging.getLogger(__name__)

HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}  # which PEFT trains for these tasks
OPTIONS = "Name targets without it (target_modules, exclude_modules)."


class RosaModel(BaseTuner):  # type: ignore[misc]  # peft is not type-checked here
    """What ``peft.get_peft_model(model, RosaConfig(...))`` keeps as ``base_model``.

    The training calls one of two methods, as the settings' ``level`` asks: ``update_and_allocate`` after each optimizer
    step or ``after_epoch`` after each epoch. ``rosa.integrations.trainer.ResampleCallback`` does it for the Trainer.
    """

    prefix = "rosa_"
    tuner_layer_cls = RosaLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # the default targets are found in the model

    _optimizer: weakref.ref[Any] | None = None
    _warned: tuple[str, ...] = ()
    _last_steps: dict[str, tuple[int, int]] = {}  # noqa: RUF012  # ``Resampler.last_step`` of each adapter
    _owners: Counter[int]
    _cut_ranks: dict[str, int] | None  # of layers whose full rank is below ``r``; None: those are refused

    def bind_optimizer(self, optimizer: Any) -> None:
        """Name the optimizer, once, whose state of A and B a resample changes as ``optimizer_state`` says.

        It is not kept alive. A resample of an adapter whose A and B it does not hold leaves it as it is, and warns.

        Raises:
            AdapterError: it holds none of the parameters of this model's adapters.
        """
        own = {id(p) for layer in self._layers() for p in layer.rosa_layers.parameters()}
        if not own & held_by(optimizer):
            raise AdapterError(
                "the optimizer holds no parameter of these adapters: make it of this model's parameters after "
                "get_peft_model"
            )
        self._optimizer = weakref.ref(optimizer)
        adapters = [adapter for layer in self._layers() for adapter in layer.rosa_layers.values()]
        steps_of(optimizer, adapters)
        for adapter in adapters:
            adapter.has_schedule = True

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy or a file, which has no optimizer."""
        return {**self.__dict__, "_optimizer": None}

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Names in the PeftModel, by which DistributedDataParallel would broadcast the records in each forward pass.

        Each process has them: subspace 0 is sampled by each from the same weights, the others are exchanged.
        """
        ends = (".left", ".right")
        layers = [name for name, module in self.named_modules() if isinstance(module, RosaAdapter)]
        return [f"base_model.{name}{end}" for name in layers for end in ends]

    @property
    def levels(self) -> set[str]:
        """The ``level`` of each active adapter's settings."""
        return {self.peft_config[name].level for name in self.active_adapters}

    def update_and_allocate(self, global_step: int, total_steps: int | None = None, optimizer: Any = None) -> bool:
        """Resample the active adapter if it is due (``level="step"``), and say whether it was.

        With another level nothing happens, and a warning says so once.

        Args:
            global_step: the optimizer steps so far, at least 1. The same number again does nothing.
            total_steps: those of the training; there is no resample after the last one.
            optimizer: see ``bind_optimizer``; None: the one that was bound.

        Raises:
            AdapterError: ``global_step`` is not a whole number.
        """
        if not isinstance(global_step, Integral):
            raise AdapterError(f"global_step={global_step!r} must be a whole number, the optimizer steps so far")
        if "epoch" in self.levels:
            self._warn_once(
                "update_and_allocate does nothing with level='epoch': call model.base_model.after_epoch(epoch) after "
                "each epoch, or adapt the model with RosaConfig(level='step', every=...)"
            )
        last = global_step + 1 if total_steps is None else total_steps
        return self._resample("step", lambda resampler: resampler.after_step(global_step, last), optimizer)

    def after_epoch(self, epoch: int, epochs: int | None = None, optimizer: Any = None) -> bool:
        """Resample the active adapter if it is due (``level="epoch"``), and say whether it was.

        Args:
            epoch: the epochs so far, at least 1.
            epochs: those of the training; there is no resample after the last one.
            optimizer: see ``bind_optimizer``; None: the one that was bound.
        """
        if "step" in self.levels and not any(step for step, _ in self._last_steps.values()):
            self._warn_once(
                "after_epoch does nothing with level='step': call model.base_model.update_and_allocate(step) instead"
            )
        last = epoch + 1 if epochs is None else epochs
        return self._resample("epoch", lambda resampler: resampler.after_epoch(epoch, last), optimizer)

    def _resample(self, level: str, if_due: Callable[[Resampler], bool], optimizer: Any) -> bool:
        """Resample the active adapters of this ``level``, by their present settings (``peft_config``), if due."""
        if optimizer is not None:
            if not hasattr(optimizer, "param_groups"):
                raise AdapterError(f"optimizer must be an optimizer with param_groups, not {type(optimizer).__name__}")
            self.bind_optimizer(optimizer)
        has_resampled = False
        for name in self.active_adapters:
            config = self.peft_config[name]
            if config.level == level and (adapters := self._adapters(name)):
                if any(is_sharded(adapter.base.weight) for adapter in adapters):
                    raise AdapterError("a sharded model does not resample under PEFT: adapt it by rosa.inject")
                if not all(adapter.has_values for adapter in adapters):
                    RosaAdapter.initialise_all(adapters)
                bound = self._optimizer_of(adapters)
                resampler = Resampler(nn.ModuleList(adapters), bound, config.settings(config.r, config.bias))
                resampler.last_step = self._last_steps.get(name, resampler.last_step)
                resampled = if_due(resampler)
                self._last_steps = {**self._last_steps, name: resampler.last_step}
                has_resampled |= resampled
                if resampled and bound is None and resampler.optimizer_state != "keep":
                    self._warn_once(
                        f"a resample of adapter {name!r} left the optimizer's state of the subspace before, because "
                        f"{self._why_unbound()}. Call model.base_model.bind_optimizer(optimizer) with the one that "
                        "trains this adapter, or set optimizer_state='keep'"
                    )
        return has_resampled

    def _optimizer_of(self, adapters: list[RosaAdapter]) -> Any:
        """The bound optimizer, if it is still there and holds each A and B of these adapters that trains; else None."""
        optimizer = None if self._optimizer is None else self._optimizer()
        if optimizer is None:
            return None
        pairs = {id(factor) for adapter in adapters for factor in (adapter.A, adapter.B) if factor.requires_grad}
        return optimizer if pairs <= held_by(optimizer) else None

    def _why_unbound(self) -> str:
        if self._optimizer is None:
            return "no optimizer is bound"
        return "the bound optimizer " + ("is deleted" if self._optimizer() is None else "lacks some of its A and B")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned = (*self._warned, text)
            warnings.warn(text, stacklevel=4)

    def _layers(self) -> list[RosaLinear]:
        return [module for module in self.model.modules() if isinstance(module, RosaLinear)]

    def _adapters(self, name: str) -> list[RosaAdapter]:
        return [layer.rosa_layers[name] for layer in self._layers() if name in layer.rosa_layers]

    # What PEFT calls to adapt a model

    def _prepare_adapter_config(self, peft_config: RosaConfig, model_config: dict[str, Any]) -> RosaConfig:
        """Without ``target_modules``: every Linear and Conv1D in the blocks."""
        targets = peft_config.target_modules
        self._cut_ranks = {} if isinstance(targets, str) and targets.lower() == "all-linear" else None
        if self._cut_ranks is not None:
            warn_of_experts(self.model)
        if peft_config.target_modules is None:
            try:
                names = [name.removesuffix(".base_layer") for name in find_targets(self.model, None)]
            except AdapterError as error:
                way_out = "; or name target_modules (all-linear), with dequantize=True"
                raise AdapterError(f"{error}{way_out if is_quantised(self.model) else ''}") from None
            if peft_config.layers_to_transform is not None:
                trial = copy.copy(peft_config)
                trial.target_modules = [name.rpartition(".")[2] for name in names]
                names = [name for name in names if check_target_module_exists(trial, f".{name}")]
            peft_config.target_modules = names
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Wrap the target layers and sample the first subspace of each, unless values will be loaded.

        Raises:
            AdapterError: besides what the layers refuse: the model has adapters of ``rosa.inject`` or is merged.
        """
        if any(isinstance(module, AdapterLayer) and not isinstance(module, RosaAdapter) for module in model.modules()):
            raise AdapterError("this model has adapters of rosa.inject: unwrap it first (rosa.unwrap)")
        if any(isinstance(module, RosaLinear) and module.merged for module in model.modules()):
            raise AdapterError("this model is merged: call unmerge_adapter() before you add an adapter")
        self._owners = weight_owners(model)
        config = self.peft_config[adapter_name]
        if config.task_type in HEADS:  # PEFT adds them to this list after this call, and it is shared with the copy
            config.modules_to_save = [*(config.modules_to_save or ()), *HEADS[config.task_type]]
        self.peft_config[adapter_name] = copy.copy(config)  # the caller may use it again
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if self._cut_ranks:
            own = self.peft_config[adapter_name]
            cut = {f"^{re.escape(name)}": rank for name, rank in self._cut_ranks.items()}
            own.rank_pattern = {**own.rank_pattern, **cut}  # for the file, whose target_modules are names
            log.warning(
                "r=%s is above the full rank of %s: there it is %s. To train a head whole, name it in modules_to_save",
                own.r, summary(self._cut_ranks), ", ".join(map(str, sorted(set(self._cut_ranks.values())))),
            )  # fmt: skip
        adapters = self._adapters(adapter_name)
        if not config.values_follow and not any(one.A.is_meta or one.base.weight.is_meta for one in adapters):
            RosaAdapter.initialise_all(adapters)

    def _create_and_replace(
        self,
        peft_config: RosaConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **others: Any,
    ) -> None:
        pattern = get_pattern_key(list(peft_config.rank_pattern), current_key)
        rank = peft_config.rank_pattern.get(pattern, peft_config.r)
        adapted = target if isinstance(target, RosaLinear) else None
        base: Any = adapted.base_layer if adapted else self._adaptable(current_key, target, peft_config.dequantize)
        full = min(layer_shape(base))
        if self._cut_ranks is not None and pattern not in peft_config.rank_pattern and isinstance(rank, int):
            if rank > full:
                self._cut_ranks[current_key] = full
            rank = min(rank, full)
        if adapted:
            adapted.update_layer(adapter_name, peft_config, rank)
            return
        layer = RosaLinear(base, current_key)
        layer._active_adapter = self.active_adapter
        layer.update_layer(adapter_name, peft_config, rank)
        self._replace_module(parent, target_name, layer.train(target.training), base)

    def _adaptable(self, name: str, target: nn.Module, dequantize: bool) -> nn.Module:
        """The module to wrap in the place of ``target``. Raises AdapterError if there is none."""
        quantised = quantisation(target)
        if not (isinstance(target, nn.Linear | Conv1D) or quantised):
            raise AdapterError(f"{name} cannot be adapted: ROSA takes Linear and Conv1D, not {type(target)}. {OPTIONS}")
        if quantised and dequantize:
            return dequantised(name, target)
        if reason := obstacle(target):
            way_out = "; or let RosaConfig(dequantize=True) do it" if quantised else ""
            raise AdapterError(f"{name} cannot be adapted: {reason}{way_out}.")
        if has_own_forward(target):
            raise AdapterError(f"{name} cannot be adapted: {OWN_FORWARD} ({type(target).__name__}). {OPTIONS}")
        if self._owners[memory_of(target.weight)] > 1:
            raise AdapterError(f"{name} cannot be adapted: {SHARED}. {OPTIONS}")
        return target

    def _check_target_module_compatiblity(self, peft_config: RosaConfig, model: nn.Module, target_name: str) -> None:
        """Warn before the training of a layer that PEFT takes in no LoRA adapter (Mamba's)."""
        try:
            super()._check_target_module_compatiblity(SimpleNamespace(peft_type="LORA"), model, target_name)
        except ValueError as error:
            if not peft_config.values_follow:
                self._warn_once(
                    f"PEFT will refuse to load what save_as_lora writes of {target_name}: leave it out "
                    f"(target_modules), or serve the merged model (merge_and_unload). Its error: {error}"
                )

    # PEFT reads ``bias`` in its own words (all, lora_only); here the bias is a part of the adapter.

    def _check_new_adapter_config(self, config: RosaConfig) -> None:
        pass

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        kept = [m for m in model.modules() if isinstance(m, RosaAdapter | AuxiliaryTrainingWrapper)]
        own = {id(p) for module in kept for p in module.parameters()}
        for parameter in model.parameters():
            if id(parameter) not in own:
                parameter.requires_grad_(False)

    def disable_adapter_layers(self) -> None:
        """Compute the base function, see PEFT; here it is the base function also where biases train."""
        for module in self.model.modules():
            if isinstance(module, RosaLinear | AuxiliaryTrainingWrapper):
                module.enable_adapters(False)  # type: ignore[operator]

    # What PEFT calls later

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Called before those of all layers, so that a state that does not fit one of them changes none."""
        for name, module in self.named_modules():
            if isinstance(module, RosaLinear):
                module.check_state(state_dict, f"{prefix}{name}.")
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(self, *args: Any) -> None:
        """Called by each way to save the model or its adapters."""
        self._warn_if_never_resampled()
        super()._save_to_state_dict(*args)

    def _warn_if_never_resampled(self) -> None:
        call = "model.base_model.after_epoch(epoch) or update_and_allocate(step)"
        for name in self.active_adapters:
            if self.peft_config[name].level != "never":  # which may have changed
                warn_if_never_resampled(self._adapters(name), call)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._warn_if_never_resampled()
        for layer in self._layers():
            merged = {*(kwargs.get("adapter_names") or layer.active_adapters), *layer.merged_adapters} if merge else ()
            if not layer.rosa_layers.keys() & merged:
                layer.restore_base()  # its weight may hold W_f of another adapter
        return super()._unload_and_optionally_merge(merge, **kwargs)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise AdapterError(
                "a batch with another adapter for each sample (adapter_names) needs LoRA: write each adapter with "
                "rosa.integrations.peft.save_as_lora and load those"
            )
        yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Not for ROSA, whose adapters hold parts of the base weight."""
        raise AdapterError(
            "ROSA adapters cannot be combined by weights: write each with rosa.integrations.peft.save_as_lora, load "
            "those, and call LoRA's add_weighted_adapter"
        )


register_peft_method(name="rosa", config_cls=RosaConfig, model_cls=RosaModel)
