"""Counts of a model's parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from rosa.injection import adapter_layers
from rosa.layers import AdapterLayer
from rosa.quantised import parameter_count
from rosa.saved_modules import saved_modules


@dataclass(frozen=True)
class LayerCount:
    """One adapted layer: its name, shape m x n, rank (None without a pair) and number of trainable parameters."""

    name: str
    shape: tuple[int, int]
    rank: int | None
    trainable: int


@dataclass(frozen=True)
class ParameterReport:
    """Parameter counts. ``total`` is that of the base model without adapters; ``layers`` is empty for a plain model.

    ``modules`` has the number of parameters of each module that trains whole (``modules_to_save``), by name.
    """

    layers: list[LayerCount]
    trainable: int
    total: int
    modules: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [f"{'layer':<40} {'shape':>13} {'rank':>5} {'trainable':>12}"] if self.layers else []
        for row in self.layers:
            shape = f"{row.shape[0]} x {row.shape[1]}"
            rows.append(f"{row.name:<40} {shape:>13} {row.rank or '-':>5} {row.trainable:>12,}")
        rows += [f"{name:<40} {'whole':>13} {'-':>5} {count:>12,}" for name, count in self.modules.items()]
        share = self.trainable / self.total if self.total else 0.0
        rows.append(f"trainable {self.trainable:,} of {self.total:,} parameters ({share:.2%})")
        return "\n".join(rows)


def parameter_report(model: nn.Module) -> ParameterReport:
    """Count trainable parameters, per adapted layer and in total."""
    layers = adapter_layers(model)
    rows = [
        LayerCount(
            name, (layer.in_features, layer.out_features), getattr(layer, "rank", None),
            sum(p.numel() for p in layer.adapter_parameters().values()),
        )
        for name, layer in layers.items()
    ]  # fmt: skip
    every = [module for module in model.modules() if isinstance(module, AdapterLayer)]  # also adapters not in use
    added = sum(p.numel() for layer in every for p in layer.own_parameters().values())
    return ParameterReport(
        rows,
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=parameter_count(model) - added,
        modules={name: sum(p.numel() for p in m.parameters()) for name, m in saved_modules(model).items()},
    )
