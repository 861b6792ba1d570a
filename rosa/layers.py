"""The adapter layer: a base module, and a low-rank pair beside it.

    x (..., m) ──┬── base: x W + b ───────┐
                 │                        + ── (..., n)
                 └── A (m, R) ── B (R, n) ┘

Linear keeps its weight as (n, m) and Conv1D as (m, n). That difference ends here: everything else sees
``weight_mn``, a view of shape (m, n). A GPT-2 ``c_fc`` of 768 inputs and 3072 outputs with R = 38 has A of
768 x 38, B of 38 x 3072: 145,920 numbers beside the weight's 2,359,296.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rosa.config import AdapterConfig
from rosa.fused import adapted_product, compute_dtype, full_precision, is_transformed

OWN_FORWARDS = (nn.Linear.forward, Conv1D.forward)  # what the fused product stands for
# Where a module keeps its hooks. The dictionaries are shared, not copied: what is registered or removed later counts.
HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def layer_shape(module: nn.Linear) -> tuple[int, int]:
    """(m, n): inputs and outputs of a Linear or Conv1D."""
    rows, columns = module.weight.shape
    return (int(columns), int(rows)) if isinstance(module, nn.Linear) else (int(rows), int(columns))


def product(a: Tensor, b: Tensor) -> Tensor:
    """A B for a merge, in float32 at least; in float64 on CUDA, where float32 products may be rounded to TF32."""
    dtype = torch.float64 if a.is_cuda else torch.promote_types(a.dtype, torch.float32)
    return a.to(dtype) @ b.to(dtype)


class AdapterLayer(nn.Module, ABC):
    """A wrapped Linear or Conv1D: x W + scale · (x A) B + b. Subclasses say how A and B begin.

    Making one changes nothing and leaves A and B unset; ``initialise`` sets them (or a checkpoint does). A and B are
    float32 at least, also beside a 16-bit weight, whose steps would round away what training changes.

    Hooks of the base module are hooks of this layer, whether they were registered before or after: they see the whole
    layer's inputs and outputs. A ``forward`` that another library has put in the place of the base module's own
    (accelerate's offload) is called, at the cost of the fused product.

    Args:
        name: the module's name in its model; with the seed it decides every random choice.
        base: the module to wrap, kept as it is (its weight's storage included).
        rank: R, 1 to min(m, n).
        config: the method's settings.
    """

    freezes_rest: ClassVar[bool] = False  # True: the base weight is changed, so a checkpoint must hold it

    scale: float = 1.0  # of A B
    base: nn.Linear  # or Conv1D, which has the same attributes
    A: nn.Parameter
    B: nn.Parameter

    def __init__(self, name: str, base: nn.Linear, rank: int, config: AdapterConfig) -> None:
        super().__init__()
        self.name = name
        self.base = base
        self.rank = rank
        self.config = config
        self.transposed = isinstance(base, nn.Linear)
        self.in_features, self.out_features = layer_shape(base)
        self.trains_bias = config.trains_bias and base.bias is not None
        self._unmerged: Tensor | None = None
        weight = self.weight_mn
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.A = nn.Parameter(weight.new_empty(self.in_features, rank, dtype=dtype))
        self.B = nn.Parameter(weight.new_empty(rank, self.out_features, dtype=dtype))
        for hooks in HOOKS:
            setattr(self, hooks, getattr(base, hooks))
        self._is_full_backward_hook = base._is_full_backward_hook

    @property
    def weight(self) -> Tensor:
        """W + scale · A B, with the shape and type of the base module's weight, for models that read a weight.

        Gradients reach A and B through it, and W where it trains. It is computed at each read: T5 asks for a type in
        each forward pass, which costs nothing measurable in training and a sixth of a decoding step, unless merged.
        LoRA's dropout acts on inputs and is not in it. Of a sharded layer it is whole in a forward pass, where the
        parameters are, and sharded like them elsewhere.
        """
        weight = self.base.weight
        if self.merged:
            return weight
        left, right = (self.B.T, self.A.T) if self.transposed else (self.A, self.B)
        dtype = torch.promote_types(weight.dtype, left.dtype)
        with full_precision(weight.device):
            return torch.addmm(weight.to(dtype), left.to(dtype), right.to(dtype), alpha=self.scale).to(weight.dtype)

    @property
    def unmerged_weight(self) -> Tensor:
        """The base weight as it is stored, detached, and without the pair even while merged."""
        return self.base.weight.detach() if self._unmerged is None else self._unmerged

    @property
    def bias(self) -> Tensor | None:
        """The base module's bias."""
        return self.base.bias

    @property
    def weight_mn(self) -> Tensor:
        """The base weight as an (m, n) view, detached: writing into it writes into the weight."""
        weight = self.base.weight.detach()
        return weight.T if self.transposed else weight

    @property
    def merged(self) -> bool:
        """Whether A B is at present part of the base weight."""
        return self._unmerged is not None

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What trains in this layer, by name within the layer. Everything else is frozen."""
        trained = {"A": self.A, "B": self.B}
        if self.trains_bias:
            trained["base.bias"] = self.base.bias
        return trained

    def train_adapter(self, trains: bool) -> None:
        """Train the ``adapter_parameters``, or freeze them; the base weight stays as it is."""
        for parameter in self.adapter_parameters().values():
            parameter.requires_grad_(trains)

    def description(self) -> dict[str, Any]:
        """What a saved adapter must agree with to be loaded here, as JSON values."""
        return {"in": self.in_features, "out": self.out_features, "rank": self.rank, "bias": self.trains_bias}

    @abstractmethod
    def initialise(self) -> None:
        """Set A and B to their start, without changing the function that the layer computes."""

    def note_start(self) -> None:
        """A and B were set, drawn or loaded: training begins from here."""

    def delta(self) -> Tensor:
        """What the pair adds to the base weight, (m, n), to the precision of a merge."""
        return product(self.A, self.B) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """x W + scale · (x A) B + b, (..., m) to (..., n); what the base module alone gives while merged."""
        if self.merged:
            return self.base.forward(x)
        if not self._fuses(x):
            return self.apart(x)
        b = self.B if self.scale == 1.0 else self.B * self.scale
        return adapted_product(x, self.weight_mn, self.base.bias, self.A, b)

    def apart(self, x: Tensor, dropout: nn.Module | None = None) -> Tensor:
        """The base module's own product and, in the pair's type, the pair's; ``dropout`` acts on the pair's inputs."""
        out = self.base.forward(x)
        own = x.to(self.A.dtype)
        low = ((own if dropout is None else dropout(own)) @ self.A) @ self.B
        return (out + low * self.scale).to(out.dtype)

    def _fuses(self, x: Tensor) -> bool:
        """Whether the fused product gives what the base module would, and every gradient that is wanted."""
        base = self.base
        return (
            type(base).forward in OWN_FORWARDS
            and "forward" not in vars(base)
            and not base.weight.requires_grad
            and compute_dtype(x) == compute_dtype(base.weight)  # Linear says what is wrong otherwise
            and torch.promote_types(self.A.dtype, base.weight.dtype) == self.A.dtype
            and not is_transformed()
        )

    @torch.no_grad()
    def merge(self, *, keep: bool = True) -> None:
        """Add the pair to the base weight. A second merge changes nothing.

        A copy of the weight is kept, because subtracting A B again would not restore its last bits.

        Args:
            keep: False keeps no copy and has no undo: the layer is to be taken out of its model.
        """
        if not self.merged:
            with full_precision(self.base.weight.device):
                delta = self.delta()
            self._unmerged = self.base.weight.detach().clone() if keep else None
            self.weight_mn.add_(delta)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo ``merge``, to the bit."""
        if self._unmerged is not None:
            self.base.weight.copy_(self._unmerged)
            self._unmerged = None

    def extra_repr(self) -> str:
        return f"{self.in_features} x {self.out_features}, rank={self.rank}, trains_bias={self.trains_bias}"
