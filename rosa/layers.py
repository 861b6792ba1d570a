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

from rosa.config import AdapterConfig
from rosa.linear import adapted_product, full_precision


def layer_shape(module: nn.Linear) -> tuple[int, int]:
    """(m, n): inputs and outputs of a Linear or Conv1D."""
    rows, columns = module.weight.shape
    return (int(columns), int(rows)) if isinstance(module, nn.Linear) else (int(rows), int(columns))


def product(a: Tensor, b: Tensor) -> Tensor:
    """A B for a merge; in float64 on CUDA, where float32 products may be rounded to TF32."""
    return a.double() @ b.double() if a.is_cuda else a @ b


class AdapterLayer(nn.Module, ABC):
    """A wrapped Linear or Conv1D. Subclasses say how A and B begin and how they enter the output.

    Making one changes nothing and leaves A and B unset; ``initialise`` sets them (or a checkpoint does).

    Args:
        name: the module's name in its model; with the seed it decides every random choice.
        base: the module to wrap, kept as it is (its weight's storage included).
        rank: R, 1 to min(m, n).
        config: the method's settings.
    """

    freezes_rest: ClassVar[bool] = False  # True: the base weight is changed, so a checkpoint must hold it

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
        self.A = nn.Parameter(weight.new_empty(self.in_features, rank))
        self.B = nn.Parameter(weight.new_empty(rank, self.out_features))

    @property
    def weight(self) -> Tensor:
        """The base module's weight as it is stored; some models look at its dtype or device."""
        return self.base.weight

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

    @abstractmethod
    def delta(self) -> Tensor:
        """What the pair adds to the base weight, (m, n)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(..., m) to (..., n)."""

    def with_pair(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """x W + scale · (x A) B + b, (..., n); what the base module alone gives while merged."""
        if self.merged:
            return self.base(x)  # type: ignore[no-any-return]
        b = self.B if scale == 1.0 else self.B * scale
        if self.base.weight.requires_grad:  # the fused product gives W no gradient
            return self.base(x) + (x @ self.A) @ b  # type: ignore[no-any-return]
        return adapted_product(x, self.weight_mn, self.base.bias, self.A, b)

    @torch.no_grad()
    def merge(self, *, keep: bool = True) -> None:
        """Add the pair to the base weight. A second merge changes nothing.

        A copy of the weight is kept, because subtracting A B again would not restore its last bits.

        Args:
            keep: False keeps no copy and has no undo: the layer is to be taken out of its model.
        """
        if not self.merged:
            with full_precision(self.weight.device):
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
