"""One ROSA adapter of one layer, with what it takes to have the base function beside it (see ``layer.py``)."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.fused import full_precision
from rosa.integrations.peft.config import RosaConfig
from rosa.kept_base import cut_to_rank, joined
from rosa.layers import product
from rosa.methods.rosa import RosaLayer
from rosa.sharding import max_abs


class RosaAdapter(RosaLayer):
    """One adapter of a ``RosaLinear``: this library's ROSA layer without a base module of its own.

    Attributes:
        left, right: the factors (m, r) and (r, n) of W_f − W_0.
        in_weight: whether the base weight contains them. ``holds`` is the same in the model's state: one with the
            weight of a model of another dtype may differ in it.
        has_values: whether the first subspace was sampled or loaded.
        number: that of the present subspace, −1 without values.
        base_checksum: of the dtype and of the values of the layer's W_0, (2,); the second is 0 if they are not known.
        bias_change: what is added to the base bias (n,), where biases train.
    """

    needed_with_pair = ("left", "right", "number")
    host: Any  # the ``RosaLinear``, which imports this file
    left: Tensor
    right: Tensor
    number: Tensor
    holds: Tensor
    base_checksum: Tensor
    bias_change: nn.Parameter | None

    def __init__(self, host: Any, config: RosaConfig, rank: int | float, in_weight: bool) -> None:
        self.__dict__["host"] = host  # not a submodule: the host holds this one
        super().__init__(host.name, host.base_layer, config.settings(rank))
        del self._modules["base"]
        self.in_weight = in_weight
        self.register_buffer("holds", torch.tensor(in_weight))
        self.has_values = False  # beside ``number``, which would make a compiled forward pass depend on a count
        self.register_buffer("number", torch.tensor(-1))
        self.register_buffer("base_checksum", _as_numbers(host.checksum, host.base_layer.weight.dtype))
        # Buffers, because no parameter of LoRA corresponds to them: counts of parameters are the same.
        self.register_buffer("left", self.A.detach().new_empty(self.in_features, 0))
        self.register_buffer("right", self.B.detach().new_empty(0, self.out_features))
        has_bias = config.trains_bias and host.base_layer.bias is not None
        self.bias_change = nn.Parameter(torch.zeros_like(self.new_parameter(self.out_features))) if has_bias else None
        with torch.no_grad():
            self.initialise()

    @property
    def base(self) -> nn.Linear:  # type: ignore[override]
        """The host's base module."""
        return self.host.base_layer  # type: ignore[no-any-return]

    @property
    def in_use(self) -> bool:  # type: ignore[override]
        """Whether the adapter is active."""
        return any(adapter is self for adapter in self.host.active_layers())

    @property
    def merged(self) -> bool:
        """Whether the host's weight contains adapters as a whole."""
        return bool(self.host.merged)

    @property
    def unmerged_bias(self) -> Tensor:
        """The base bias, detached; without changes by adapters even while the host is merged."""
        unmerged: dict[str, Tensor] = self.host._unmerged
        return unmerged.get("bias", self.base.bias.detach())

    @property
    def _is_rounded(self) -> bool:
        return False  # a 16-bit weight is not written

    @property
    def unrounded(self) -> list[Tensor]:
        return [self.A, self.base.weight] if self.in_weight else [self.A]

    @property
    def merged_mn(self) -> Tensor:
        """The weight (m, n) to factorise; at least float32."""
        return self.weight_mn if self.in_weight else self.weight_mn.float() + self.host.change([self])

    def _add_pair(self, sign: int) -> None:
        """W_f ← W_f ± A B: in the weight, if it holds W_f, and in the factors."""
        if (sign > 0 and not self.has_values) or (sign < 0 and self.config.start == "zero"):
            return  # A B is zero
        if self.in_weight:
            super()._add_pair(sign)
        left, right = torch.cat([self.left, sign * self.A], 1), torch.cat([self.right, self.B])
        if left.shape[1] > min(self.in_features, self.out_features):
            left, right = cut_to_rank(left, right)
        self.left, self.right = left, right

    @torch.no_grad()
    def set_factors(self, a: Tensor, b: Tensor) -> None:
        super().set_factors(a, b)
        self.has_values = True

    def hold(self, sign: int) -> None:
        """Add the factors' product to the base weight, or subtract it."""
        with full_precision(self.weight_mn.device):
            self.weight_mn.add_(product(self.left, self.right), alpha=sign)

    def leave_weight(self) -> None:
        """Take the factors' product out of the base weight for good."""
        self.hold(-1)
        self.in_weight = False
        self.holds.fill_(False)

    def delta(self) -> Tensor:
        """W − W_0 (m, n), the whole change by this adapter."""
        return product(*joined([(self.A, self.B), (self.left, self.right)]))

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.bias_change is None else (out + self.bias_change).to(out.dtype)

    def check_record(self, state_dict: dict[str, Tensor], prefix: str, brings_weight: bool) -> None:
        """Raise AdapterError unless the values of a state, if it has some, are sound and belong to this base.

        Args:
            state_dict, prefix, brings_weight: see ``load_record``.
        """
        found = {key: state_dict.get(prefix + key) for key in ("A", "B", "left", "right", "bias_change")}
        for key, values in found.items():
            if values is None or (values.is_floating_point() and not values.numel()):
                continue
            if not (values.is_floating_point() and max_abs(values) < math.inf):
                raise AdapterError(f"{prefix}{key} holds values that are not finite floating-point numbers")
        left, right = found["left"], found["right"]
        if left is not None and right is not None and (left.shape[1:] != right.shape[:1] or right.dim() != 2):
            raise AdapterError(f"{prefix}left {tuple(left.shape)} and right {tuple(right.shape)} do not fit together")
        saved = state_dict.get(prefix + "base_checksum")
        if saved is None or brings_weight or self.base_checksum.is_meta or saved.shape != self.base_checksum.shape:
            return  # files of earlier versions have none; PyTorch's error names a wrong shape
        (dtype, values), (own_dtype, own_values) = saved.tolist(), self.base_checksum.tolist()
        if values and own_values and dtype == own_dtype and values != own_values:
            raise AdapterError(
                f"{self.host.name}: the adapter belongs to another base model, whose weight has other values. Load the "
                "model that it was trained on."
            )

    @torch.no_grad()
    def load_record(self, state_dict: dict[str, Tensor], prefix: str, brings_weight: bool) -> None:
        """Take the factors and the number of a state, and put the factors into the weight in place of the present ones.

        Args:
            state_dict: with keys that begin with ``prefix``; the factors may have another rank than the present ones.
            brings_weight: whether the base weight comes with it, so that it contains the factors already.
        """
        a, left, right, number = (state_dict.get(prefix + key) for key in ("A", "left", "right", "number"))
        if a is None or left is None or right is None or number is None:
            return
        shapes = a.shape, left.shape[0], right.shape[1], number.shape
        if shapes != (self.A.shape, self.in_features, self.out_features, self.number.shape):
            return  # PyTorch's error names the key
        if brings_weight and (holds := state_dict.get(prefix + "holds")) is not None:
            self.in_weight = bool(holds)
        else:
            state_dict[prefix + "holds"] = self.holds
        moves = self.in_weight and not brings_weight
        if moves:
            self.hold(-1)
        self.left, self.right = (part.to(self.base.weight.device, self.A.dtype, copy=True) for part in (left, right))
        if moves:
            self.hold(1)
        self.has_values = int(number) >= 0
        unknown = torch.zeros_like(self.base_checksum) if brings_weight else self.base_checksum
        state_dict.setdefault(prefix + "base_checksum", unknown)  # files of earlier versions have none


def _as_numbers(checksum: str | None, dtype: torch.dtype) -> Tensor:
    """A checksum in the form of a state's tensor: one number for the dtype, one for the values."""
    values = 0 if checksum is None else int.from_bytes(bytes.fromhex(checksum), signed=True)
    return torch.tensor([zlib.crc32(str(dtype).encode()), values])
