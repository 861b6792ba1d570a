"""Models with quantised layers: by a stand-in, and by the real quantisers where they are (make extras-test)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.rosa.cases import make_model, tokens


class Packed(nn.Linear):
    """Stands in for a quantised layer: int8 values and a scale, with a way back as in HQQ or GPTQ."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, device="meta")
        self.scale = plain.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((plain.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = plain.bias

    def dequantize(self) -> torch.Tensor:
        return self.weight.float() * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.dequantize(), self.bias)


class Sealed(Packed):
    dequantize = None  # type: ignore[assignment]


def nf4(plain: nn.Linear) -> nn.Module:
    """bitsandbytes' four bits."""
    bnb = pytest.importorskip("bitsandbytes")
    with_bias = plain.bias is not None
    layer = bnb.nn.Linear4bit(
        plain.in_features, plain.out_features, with_bias, compute_dtype=torch.float32, quant_type="nf4"
    )
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu")  # which quantises


def torchao_int8(plain: nn.Linear) -> nn.Module:
    """A Linear whose weight is torchao's int8 tensor."""
    quantization = pytest.importorskip("torchao.quantization")
    layer = nn.Sequential(plain)
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    return layer[0]


QUANTISERS: dict[str, Callable[[nn.Linear], nn.Module]] = {"stand-in": Packed, "nf4": nf4, "torchao": torchao_int8}


def plain_llama() -> Any:
    """A small Llama in the sizes that bitsandbytes takes on a CPU, multiples of 32."""
    return make_model("llama", hidden_size=64, intermediate_size=96, num_key_value_heads=2, initializer_range=0.1)


def quantised_llama(kind: str = "stand-in", *endings: str) -> Any:
    """``plain_llama`` with quantised layers in its blocks: all of them, or those with one of the ``endings``."""
    model = plain_llama()
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear) and (not endings or name.endswith(endings)):
            model.model.set_submodule(name, QUANTISERS[kind](module))
    return model


def training_logits(model: Any) -> torch.Tensor:
    """Logits in training mode: bitsandbytes takes another, less exact kernel in evaluation."""
    return model.train()(tokens()).logits.detach()
