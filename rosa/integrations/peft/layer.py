"""A layer with several ROSA adapters in PEFT's form, and how the base function stays within reach.

The base weight W of a layer holds W_f while ROSA trains, so that its forward pass costs what LoRA's costs. Each adapter
keeps W_f − W_0 as two factors beside it (``left`` (m, r) and ``right`` (r, n) in float32), to which a resample adds
2 R columns and rows: r = (2 K − 1) R after K subspaces, at most min(m, n). They take r (m + n) numbers, and nothing is
computed with them while the adapter is the only one that is active.

- ``disable_adapter`` subtracts x left right from the output. The weight is not written, so that nothing drifts; the
  result is the base function up to rounding.
- A second adapter, and every adapter of a 16-bit base, leaves the weight as it is, and its forward pass adds its own
  factors: rank 2 R K instead of R. So switching adapters writes nothing, a 16-bit base keeps its exact values, and no
  resample is rounded to 16 bits. A model that is converted to 16 bits after ``get_peft_model`` does not resample.
- ``unload`` and ``delete_adapter`` write W_0 = W_f − left right, up to rounding, or exactly if the weight is W_0.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from rosa.checksums import values_checksum
from rosa.errors import AdapterError
from rosa.fused import adapted_product, full_precision
from rosa.hooks import RunsHooksOfBase, share_hooks
from rosa.integrations.peft.adapter import RosaAdapter
from rosa.integrations.peft.config import RosaConfig
from rosa.kept_base import Pair, is_rounded, joined
from rosa.layers import product
from rosa.targets import OFFLOADED

RESTORED = "_rosa_restored"  # attribute of a base module: the checksums of its weight as it was found and as it is


class RosaLinear(RunsHooksOfBase, nn.Module, BaseTunerLayer):  # type: ignore[misc]  # peft is not type-checked here
    """A Linear or Conv1D with ROSA adapters by name.

    Attributes:
        checksum: of the base weight as it was found; None on meta.
    """

    adapter_layer_names = ("rosa_layers",)

    base_layer: Any  # a Linear or Conv1D
    rosa_layers: Any  # a ModuleDict of RosaAdapter
    active_adapters: list[str]

    def __init__(self, base_layer: Any, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.rosa_layers = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._unmerged: dict[str, Tensor] = {}  # while merged: what the base module held before
        found, original = self._checksum(), getattr(base_layer, RESTORED, {})
        self.checksum = original.get(found, found)
        share_hooks(self, base_layer)

    def update_layer(self, adapter_name: str, config: RosaConfig, rank: int | float) -> None:
        """Add an adapter without values.

        Raises:
            AdapterError: the rank is above that of this layer.
        """
        others = self.rosa_layers.keys() - {adapter_name}  # PEFT replaces one of this name, after a warning
        in_weight = not others and not is_rounded(self.base_layer.weight)
        try:
            adapter = RosaAdapter(self, config, rank, in_weight)
        except ValueError as error:
            text = str(error).replace("rank=", "r=")
            raise AdapterError(f"{self.name}: {text} To train a head whole, name it in modules_to_save.") from None
        self._leave(adapter_name)
        self.rosa_layers[adapter_name] = adapter
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Called before those of the adapters, which can take values of present shapes only."""
        self.check_state(state_dict, prefix)
        for name, adapter in self.rosa_layers.items():
            adapter.load_record(state_dict, f"{prefix}rosa_layers.{name}.", f"{prefix}base_layer.weight" in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def check_state(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Raise AdapterError unless this layer can take the values that a state has for its adapters."""
        if f"{prefix}rosa_layers.bias_change" in state_dict:  # PEFT gives names of an adapter to what the adapter has
            raise AdapterError(f"{self.name}: the saved adapter trained biases, and the one here none (bias='none')")
        for name, adapter in self.rosa_layers.items():
            if self.merged and any(key.startswith(f"{prefix}rosa_layers.{name}.") for key in state_dict):
                raise AdapterError(f"{self.name} is merged: call unmerge_adapter() before you load values")
            adapter.check_record(state_dict, f"{prefix}rosa_layers.{name}.", f"{prefix}base_layer.weight" in state_dict)

    def active_layers(self) -> list[RosaAdapter]:
        """The active adapters that this layer has."""
        return [self.rosa_layers[name] for name in self.active_adapters if name in self.rosa_layers]

    def pairs(self, wanted: Sequence[RosaAdapter]) -> list[Pair]:
        """The pairs whose products turn the weight, as it is, into that with the ``wanted`` adapters and no others."""
        found: list[Pair] = [(adapter.A, adapter.B) for adapter in wanted]
        for adapter in self.rosa_layers.values():
            is_wanted = any(adapter is one for one in wanted)
            if is_wanted != adapter.in_weight:
                found.append((adapter.left if is_wanted else -adapter.left, adapter.right))
        return found

    def change(self, wanted: Sequence[RosaAdapter]) -> Tensor | float:
        """The sum (m, n) of the ``pairs``."""
        pairs = self.pairs(wanted)
        return product(*joined(pairs)) if pairs else 0.0

    def _missing(self) -> tuple[list[RosaAdapter], list[Pair]]:
        """The adapters of the present output, and the pairs that the base weight lacks for it."""
        if self.merged:
            return [], []
        wanted = [] if self.disable_adapters else self.active_layers()
        return wanted, self.pairs(wanted)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., m) to (..., n)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        wanted, pairs = self._missing()
        for adapter in wanted:
            if adapter.A.is_meta and not x.is_meta and not adapter.has_values:
                raise AdapterError(
                    f"{self.name}: the adapter is on the meta device and has no values: call get_peft_model without "
                    "low_cpu_mem_usage, or load values"
                )
            if not adapter.has_values:  # its settings came from a file, but no values
                adapter.initialise_all([adapter])
                return self.forward(x)
        if len(wanted) == len(pairs) == 1:
            return wanted[0].forward(x)
        base = self.base_layer
        if not pairs:
            return base.forward(x)  # type: ignore[no-any-return]
        # accelerate brings A and B for the forward pass of one adapter only
        if not x.is_meta and any(factor.is_meta for pair in pairs for factor in pair):
            raise AdapterError(f"{self.name}: {OFFLOADED}")
        a, b = joined(pairs)
        some = wanted[0] if wanted else next(iter(self.rosa_layers.values()))
        if some._fuses(x):
            out = adapted_product(x, some.weight_mn, base.bias, a, b)
        else:
            out = base.forward(x)
            out = (out + (x.to(a.dtype) @ a) @ b).to(out.dtype)
        for adapter in wanted:
            if adapter.bias_change is not None:
                out = (out + adapter.bias_change).to(out.dtype)
        return out

    @property
    def weight(self) -> Tensor:
        """The weight of the present output, for models that read weights instead of calling layers."""
        return self._with(self.base_layer.weight, self._missing()[1])

    @property
    def base_weight(self) -> Tensor:
        """W_0 in the base module's shape, detached; up to its rounding where an adapter is in the weight."""
        return self._with(self._unmerged.get("weight", self.base_layer.weight), self.pairs(())).detach()

    def _with(self, weight: Tensor, pairs: list[Pair]) -> Tensor:
        """A weight in the base module's shape, with the products of the pairs added."""
        if not pairs:
            return weight
        a, b = joined(pairs)
        left, right = (b.T, a.T) if isinstance(self.base_layer, nn.Linear) else (a, b)
        with full_precision(weight.device):
            return torch.addmm(weight.to(a.dtype), left, right).to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the present output."""
        bias = self.base_layer.bias
        for adapter in self._missing()[0]:
            if adapter.bias_change is not None:
                bias = (bias + adapter.bias_change).to(bias.dtype)
        return bias  # type: ignore[no-any-return]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base module. Copies of what it held are kept for ``unmerge``.

        Raises:
            ValueError: with ``safe_merge``, the sum is not finite; nothing is changed then.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.rosa_layers]
        adapters: list[RosaAdapter] = [self.rosa_layers[name] for name in names]
        if not adapters:
            return
        weight, bias = self.base_layer.weight.detach(), self.base_layer.bias
        view = weight.T if isinstance(self.base_layer, nn.Linear) else weight
        with full_precision(weight.device):
            added = sum(adapter.delta() for adapter in adapters) if self.merged else self.change(adapters)
            total = (view + added).to(weight.dtype)
        if safe_merge and not total.isfinite().all():
            raise ValueError(f"{self.name}: NaNs detected in the weight with {', '.join(names)}: not merged")
        if not self.merged:
            self._unmerged = {"weight": weight.clone()} | ({} if bias is None else {"bias": bias.detach().clone()})
        view.copy_(total)
        for adapter in adapters:
            if adapter.bias_change is not None:
                bias.add_(adapter.bias_change)
        self.merged_adapters = [*self.merged_adapters, *names]

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo ``merge``, to the bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        for name, before in self._unmerged.items():
            getattr(self.base_layer, name).copy_(before)
        self._unmerged, self.merged_adapters = {}, []

    @torch.no_grad()
    def restore_base(self) -> None:
        """Write W_0 into the weight, up to its rounding. An adapter that follows knows it for the same base."""
        if self.merged:
            self.unmerge()
        for adapter in self.rosa_layers.values():
            if adapter.in_weight:
                adapter.leave_weight()
                setattr(self.base_layer, RESTORED, {self._checksum(): self.checksum})

    def _checksum(self) -> str | None:
        weight = self.base_layer.weight.detach()
        return None if weight.is_meta else values_checksum({"weight": weight})

    def _leave(self, adapter_name: str) -> None:
        """Take what an adapter put into the weight out of it, if it is there."""
        if adapter_name in self.rosa_layers and self.rosa_layers[adapter_name].in_weight:
            self.restore_base()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; the weight loses what it put there."""
        self._leave(adapter_name)
        super().delete_adapter(adapter_name)

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Make adapters active, and train them; see PEFT."""
        super().set_adapter(*args, **kwargs)
        self._freeze_fixed()

    def set_requires_grad(self, *args: Any, **kwargs: Any) -> None:
        """Train adapters, or freeze them; see PEFT."""
        super().set_requires_grad(*args, **kwargs)
        self._freeze_fixed()

    def _freeze_fixed(self) -> None:
        for adapter in self.rosa_layers.values():
            for name in adapter.fixed:
                adapter.get_parameter(name).requires_grad_(False)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's, which would give the adapter the dtype of the base as well."""
        if adapter_name in self.rosa_layers and not self.rosa_layers[adapter_name].A.is_meta:
            self.rosa_layers[adapter_name].to(device or self.base_layer.weight.device)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether ``peft.convert_to_lora`` can take this layer."""
        return True

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The change by an adapter, float32, in the base weight's shape."""
        delta: Tensor = self.rosa_layers[adapter_name].delta().float()
        return delta.T if isinstance(self.base_layer, nn.Linear) else delta
