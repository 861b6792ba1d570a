"""The adapter layer: a base module and the parameters that a method adds to it.

``AdapterLayer`` is the contract of every method. ``LowRankLayer`` is the part that methods with a pair share:

    x (..., m) ──┬── base: x W + b ───────┐
                 │                        + ── (..., n)
                 └── A (m, R) ── B (R, n) ┘

Linear keeps its weight as (n, m) and Conv1D as (m, n). That difference ends here: everything else sees
``weight_mn``, a view of shape (m, n).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.fused import KeptSum, adapted_product, compute_dtype, full_precision, is_transformed
from rosa.hooks import RunsHooksOfBase, share_hooks
from rosa.kept_base import KeptBase
from rosa.layer_state import forward_merged, guard_state
from rosa.quantised import NO_MERGE, is_packed, quantisation, readable
from rosa.settings import AdapterConfig, LowRankConfig
from rosa.sharding import gathered
from rosa.subspace import resolve_rank
from rosa.targets import PLAIN_FORWARDS


def layer_shape(module: nn.Linear) -> tuple[int, int]:
    """(m, n): inputs and outputs of a Linear or Conv1D."""
    if quantisation(module):  # its weight may be packed
        return int(module.in_features), int(module.out_features)
    rows, columns = module.weight.shape
    return (int(columns), int(rows)) if isinstance(module, nn.Linear) else (int(rows), int(columns))


def product(a: Tensor, b: Tensor) -> Tensor:
    """A B for a merge, in float32 at least; in float64 on CUDA, where float32 products may be rounded to TF32."""
    dtype = torch.float64 if a.is_cuda else torch.promote_types(a.dtype, torch.float32)
    return a.to(dtype) @ b.to(dtype)


class AdapterLayer(RunsHooksOfBase, nn.Module, ABC):
    """A wrapped Linear or Conv1D, x W + b. Subclasses add parameters, initialise them and compute the output.

    ``__init__`` makes parameters (by ``new_parameter``), leaves the base module unchanged, and gives no values.

    Hooks of the base module, registered before or after, are hooks of this layer: they see the whole layer's inputs
    and outputs. A base ``forward`` that another library has replaced (accelerate's offload) is called, unfused.

    Args:
        name: the module's name in its model; with the seed it decides every random choice.
        base: the module to wrap, kept as it is (its weight's storage included).
        config: the method's settings. ValueError is raised if they do not fit the base module.
    """

    rewrites_base: ClassVar[bool] = False  # True: training changes the base weight, so a checkpoint must hold it
    takes_quantised: ClassVar[bool] = False  # True: needs the base's outputs only, so W may be quantised
    needed_with_pair: ClassVar[tuple[str, ...]] = ()  # tensors without which A, B of a state are of no use
    fixed: tuple[str, ...] = ()  # own parameters that do not train; only a resample writes them
    kept: KeptBase | None = None  # the base's values that training writes over; None: not kept
    has_values: bool = False  # its own parameters were set or loaded
    in_use: bool = True  # False: the module that holds this layer uses another one now (several adapters of peft)

    base: nn.Linear  # or Conv1D, which has the same attributes

    def __init__(self, name: str, base: nn.Linear, config: AdapterConfig) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.config = config
        self.transposed = isinstance(base, nn.Linear)
        self.in_features, self.out_features = layer_shape(base)
        self.trains_bias = config.trains_bias and base.bias is not None
        if self.trains_bias and self.quantised:
            raise ValueError("its class may round the bias of a quantised layer: train none there (bias='none')")
        self._unmerged: dict[str, Tensor] | None = None  # while merged: what the base module held before
        share_hooks(self, base)
        guard_state(self)

    def new_parameter(self, *shape: int) -> nn.Parameter:
        """An unset parameter on the weight's device, in float32 at least: 16 bits round small updates away."""
        weight = self.base.weight
        dtype = torch.float32 if self.quantised else torch.promote_types(weight.dtype, torch.float32)
        return nn.Parameter(torch.empty(shape, dtype=dtype, device=weight.device))

    @property
    def weight(self) -> Tensor:
        """The merged weight in the shape and dtype of the base module's, for models that read ``layer.weight``.

        Gradients reach the layer's own parameters through it. It is computed at each read, unless merged. In a sharded
        layer it is like the parameters: whole during a forward pass, sharded otherwise. If only the base module can
        read its weight (bitsandbytes), that is given as it is stored.
        """
        weight = readable(self.base.weight)
        delta = None if self.merged or is_packed(self.base) else self.delta()
        return weight if delta is None else (weight + (delta.T if self.transposed else delta)).to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The merged bias, (n,), see ``weight``; None if the base module has none."""
        bias, delta = self.base.bias, None if self.merged else self.bias_delta()
        return bias if delta is None else (bias + delta).to(bias.dtype)

    @property
    def unmerged_weight(self) -> Tensor:
        """The base weight as it is stored, detached; without ``delta`` even while merged."""
        return (self._unmerged or {}).get("weight", self.base.weight.detach())

    @property
    def unmerged_bias(self) -> Tensor:
        """The base bias, detached; without ``bias_delta`` even while merged."""
        return (self._unmerged or {}).get("bias", self.base.bias.detach())

    @property
    def weight_mn(self) -> Tensor:
        """The base weight as an (m, n) view, detached: writing into it writes into the weight, unless quantised."""
        weight = readable(self.base.weight.detach())
        return weight.T if self.transposed else weight

    @property
    def quantised(self) -> bool:
        """Whether the base weight is quantised, so that it takes no change."""
        return quantisation(self.base) is not None

    @property
    def merged(self) -> bool:
        """Whether the base module contains ``delta`` and ``bias_delta`` now."""
        return self._unmerged is not None

    def own_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the method adds to the base module, by name within the layer."""
        return dict(self.named_parameters(recurse=False))

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of this layer that train, by name within the layer. All others are frozen."""
        own = {name: parameter for name, parameter in self.own_parameters().items() if name not in self.fixed}
        return own | ({"base.bias": self.base.bias} if self.trains_bias else {})

    def changing_parameters(self) -> list[Tensor]:
        """The parameters that training or a resample changes."""
        weight = [self.base.weight] if self.rewrites_base else []
        return [*(self.own_parameters() | self.adapter_parameters()).values(), *weight]

    def optimizer_options(self, name: str) -> dict[str, float]:
        """The optimizer's settings that the trained parameter ``name`` needs (``rosa.parameter_groups``).

        ``lr_scale`` stands for a multiple of the learning rate of all parameters.
        """
        return {}

    def train_adapter(self, trains: bool) -> None:
        """Train the ``adapter_parameters``, or freeze them; the base weight stays as it is."""
        for parameter in self.adapter_parameters().values():
            parameter.requires_grad_(trains)

    def description(self) -> dict[str, Any]:
        """The properties that a saved adapter must share with this layer to be loaded, as JSON values."""
        return {"in": self.in_features, "out": self.out_features, "bias": self.trains_bias}

    @classmethod
    def initialise_all(cls, layers: Sequence[Self]) -> None:
        """``initialise`` all layers of a model. Methods that compute all starting values together override this."""
        for layer in layers:
            with gathered(layer):
                layer.initialise()

    @abstractmethod
    def initialise(self) -> None:
        """Set the own parameters to their starting values. The layer computes the same function as before."""

    def on_load(self) -> None:
        """Called once the own parameters are loaded from a file."""
        self.has_values = True

    def delta(self) -> Tensor | None:
        """The change (m, n) that a merge adds to the base weight, in the precision of ``product``; None: no change."""
        return None

    def bias_delta(self) -> Tensor | None:
        """The change (n,) that a merge adds to the base bias; None: no change, or no bias."""
        return None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., m) to (..., n). While merged, the base module alone computes it."""

    @torch.no_grad()
    def merge(self, *, keep: bool = True) -> None:
        """Add ``delta`` to the base weight and ``bias_delta`` to the bias. A second merge changes nothing.

        Copies of both are kept, because subtracting again would not restore their last bits. A quantised weight raises
        AdapterError.

        Args:
            keep: False keeps no copies, so that ``unmerge`` cannot follow. For a layer that is removed next.
        """
        if self.merged:
            return
        if self.quantised:
            raise AdapterError(f"{self.name}: {NO_MERGE}")
        with full_precision(self.base.weight.device):
            delta, bias_delta = self.delta(), self.bias_delta()
        if keep:
            changes = {"weight": delta, "bias": bias_delta}.items()
            self._unmerged = {n: getattr(self.base, n).detach().clone() for n, change in changes if change is not None}
        if delta is not None:
            self.weight_mn.add_(delta)
        if bias_delta is not None:
            self.base.bias.add_(bias_delta)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo ``merge``, to the bit."""
        for name, before in (self._unmerged or {}).items():
            getattr(self.base, name).copy_(before)
        self._unmerged = None

    def extra_repr(self) -> str:
        values = [f"{key}={value}" for key, value in self.description().items() if key not in ("in", "out")]
        return ", ".join([f"{self.in_features} x {self.out_features}", *values])


class LowRankLayer(AdapterLayer):
    """x W + scale · (x A) B + b with a pair A (m, R), B (R, n). Subclasses initialise A and B.

    Attributes:
        rank: R, 1 to min(m, n), from the settings' rank or ratio.
        scale: the factor of A B.
    """

    config: LowRankConfig
    scale: float = 1.0
    A: nn.Parameter
    B: nn.Parameter

    def __init__(self, name: str, base: nn.Linear, config: LowRankConfig) -> None:
        super().__init__(name, base, config)
        shape = self.in_features, self.out_features
        try:
            self.rank = resolve_rank(config.rank, *shape)
        except ValueError as error:
            raise ValueError(
                f"{error}. Ask for at most {min(shape)}, for a share of each (rank=0.05), or leave this layer out by "
                "target_modules."
            ) from None
        self._sum = KeptSum()
        self.A = self.new_parameter(self.in_features, self.rank)
        self.B = self.new_parameter(self.rank, self.out_features)

    @property
    def weight(self) -> Tensor:
        """W + scale · A B; see ``AdapterLayer``. Gradients reach W too, if it trains. LoRA's dropout is not in it."""
        weight = readable(self.base.weight)
        if self.merged or is_packed(self.base):
            return weight
        left, right = (self.B.T, self.A.T) if self.transposed else (self.A, self.B)
        dtype = torch.promote_types(weight.dtype, left.dtype)
        with full_precision(weight.device):
            return torch.addmm(weight.to(dtype), left.to(dtype), right.to(dtype), alpha=self.scale).to(weight.dtype)

    def description(self) -> dict[str, Any]:
        return {**super().description(), "rank": self.rank}

    def delta(self) -> Tensor:
        return product(self.A, self.B) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return forward_merged(self, x)
        if not self._fuses(x):
            return self.apart(x)
        b = self.B if self.scale == 1.0 else self.B * self.scale
        weight = self.weight_mn
        return adapted_product(x, weight, self.base.bias, self.A, b, self._sum.buffer(x, weight, self.A, self.B))

    def apart(self, x: Tensor, dropout: nn.Module | None = None) -> Tensor:
        """The base output plus the pair's, in the base output's dtype; ``dropout`` acts on the pair's input."""
        out = self.base.forward(x)
        own = x.to(self.A.dtype)
        low = ((own if dropout is None else dropout(own)) @ self.A) @ self.B
        return (out + low * self.scale).to(out.dtype)

    def _fuses(self, x: Tensor) -> bool:
        """Whether the fused product gives the base module's result here, and all gradients that are needed."""
        base = self.base
        return (
            not self.quantised
            and type(base).forward in PLAIN_FORWARDS
            and "forward" not in vars(base)
            and not base.weight.requires_grad
            and compute_dtype(x) == compute_dtype(base.weight)  # else Linear raises its own clear error
            and torch.promote_types(self.A.dtype, base.weight.dtype) == self.A.dtype
            and not is_transformed()
        )
