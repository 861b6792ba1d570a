"""A model on the processes of a job: whole on each (accelerate, DDP), or in shards (PyTorch's FSDP2)."""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import rosa
from rosa.sharding import gather, shard_like
from utils.config.train import TrainConfig
from utils.errors import UserError
from utils.log import log
from utils.models.compilation import blocks
from utils.processes.devices import build_accelerator
from utils.processes.group import Processes

IMPLEMENTATION = ("foreach", "fused", "capturable")  # optimizer settings that select an implementation


def build_placement(train: TrainConfig, precision: str, processes: Processes) -> Placement:
    """The placement that ``train.sharding`` asks for, computing in ``precision``: fp32, bf16 or fp16."""
    if train.sharding == "fsdp" and processes.count > 1:
        return Shards(train, precision, processes)
    if train.sharding == "fsdp":
        log.info("train.sharding=fsdp has no effect on a single process")
    return Replicas(train, precision)


class Placement(ABC):
    """How a model lies on the processes of a job, and what depends on that."""

    sharded: ClassVar[bool]  # True: no process has the whole model

    def __init__(self, train: TrainConfig, precision: str) -> None:
        self.accelerator, self.precision = build_accelerator(train, precision), precision
        self.device: torch.device = self.accelerator.device

    @abstractmethod
    def distribute(self, token_loss: nn.Module) -> None:
        """Move the model to its device. Afterwards its parameters keep their identity."""

    @abstractmethod
    def prepare(self, token_loss: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        """The module and the optimizer, wrapped for several processes and mixed precision."""

    @abstractmethod
    def micro_batch_context(self, token_loss: Any, last: bool) -> AbstractContextManager[Any]:
        """The context of a micro-batch's forward and backward pass. Gradients are averaged only if ``last``."""

    @abstractmethod
    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor:
        """Clip the gradient's norm to ``limit``, if there is one. Returns the norm before, on the device."""

    @abstractmethod
    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state as a single process has it."""

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """Load the ``optimizer_state`` of this or another placement. This optimizer keeps its implementation."""
        groups = [
            {**saved, **{key: own[key] for key in IMPLEMENTATION if key in own}}
            for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
        ]
        optimizer.load_state_dict({**state, "param_groups": groups})

    @abstractmethod
    def full_model(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """The model with all values of a checkpoint, for the main process to save."""


class Replicas(Placement):
    """The whole model on each process; DDP averages their gradients."""

    sharded = False

    def distribute(self, token_loss: nn.Module) -> None:
        token_loss.to(self.device)

    def prepare(self, token_loss: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        token_loss, optimizer = self.accelerator.prepare(token_loss, optimizer)
        return token_loss, optimizer

    def micro_batch_context(self, token_loss: Any, last: bool) -> AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.accelerator.no_sync(token_loss)

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor:
        norm: Tensor = self.accelerator.clip_grad_norm_(parameters, limit or math.inf)
        return norm

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state: dict[str, Any] = optimizer.state_dict()
        return state

    def full_model(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        return contextlib.nullcontext(model)


class Shards(Placement):
    """Each process keeps a part of every parameter; a block is whole only while it computes (FSDP2)."""

    sharded = True

    def __init__(self, train: TrainConfig, precision: str, processes: Processes) -> None:
        super().__init__(train, precision)
        if self.precision == "fp16":
            raise UserError("train.precision=fp16 does not go with train.sharding=fsdp: use bf16 or fp32")
        log.info("train.sharding=fsdp: no sample texts in validation, since they need the whole model")
        self.processes = processes
        self._twin: nn.Module | None = None

    def distribute(self, token_loss: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        model: Any = token_loss.model
        self._twin = _on_meta(model)
        bf16 = self.precision == "bf16"
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
        mesh = init_device_mesh(self.device.type, (self.processes.count,))
        for module in (*blocks(model), token_loss):
            # the outermost group too: code that writes into parameters after a forward pass must find shards
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)

    def prepare(self, token_loss: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        return token_loss, optimizer

    def micro_batch_context(self, token_loss: Any, last: bool) -> AbstractContextManager[Any]:
        token_loss.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = gather(torch.nn.utils.get_total_norm(gradients))
        if limit:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state = optimizer.state_dict()
        whole = {number: _map(values, lambda value: gather(value).cpu()) for number, values in state["state"].items()}
        return {**state, "state": whole}

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        own = {
            number: _map(values, lambda value, of=parameters[number]: shard_like(value, of) if value.dim() else value)
            for number, values in state["state"].items()
        }
        super().load_optimizer_state(optimizer, {**state, "state": own})

    @contextlib.contextmanager
    def full_model(self, model: nn.Module) -> Iterator[nn.Module]:
        """A copy of the model on the CPU of the main process, gathered tensor by tensor.

        On the other processes it has no values. Nor do parameters that a checkpoint leaves out (an adapter's base
        model).
        """
        assert self._twin is not None
        kept = {id(p) for layer in rosa.adapter_layers(self._twin).values() for p in layer.changing_parameters()}
        parameters = zip(self._twin.parameters(), model.parameters(), strict=True)
        pairs: list[tuple[Tensor, Tensor]] = [(own, p) for own, p in parameters if id(own) in kept or not kept]
        pairs += zip(self._twin.buffers(), model.buffers(), strict=True)  # such as the number of a layer's subspace
        filled = []
        for own, tensor in pairs:
            values = gather(tensor)
            if self.processes.main:
                filled.append((own, own.detach()))
                _set(own, values.cpu())
        try:
            yield self._twin
        finally:
            for own, empty in filled:
                _set(own, empty)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that has names and shapes, but no values."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.detach().to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return copy.deepcopy(model, memo)


def _set(own: Tensor, values: Tensor) -> None:
    """Let a parameter or buffer have other ``values``, of another device."""
    is_parameter = isinstance(own, nn.Parameter)
    torch.utils.swap_tensors(own, nn.Parameter(values, own.requires_grad) if is_parameter else values)


def _map(values: dict[str, Any], function: Any) -> dict[str, Any]:
    return {key: function(value) if isinstance(value, Tensor) else value for key, value in values.items()}
