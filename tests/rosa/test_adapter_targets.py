"""Which modules are adapted. Others are refused by name, or left out with a warning."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from transformers import FalconConfig, FalconForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.pytorch_utils import Conv1D

import rosa
from tests.rosa.cases import FAMILIES, digests, logits, make_model

CONFIGS = [rosa.RosaConfig(rank=2), rosa.LoraConfig(rank=2)]


class Doubled(nn.Linear):
    """A Linear with a forward of its own, which an adapter would ignore."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Rewritten(nn.Linear):
    """The same product, written in another way."""

    def forward(self, input: Tensor) -> Tensor:
        out = input @ self.weight.t()
        return out if self.bias is None else out + self.bias


class DoubledConv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Inner(Tensor):
    """A tensor made of another one, as quantised weights are."""

    @staticmethod
    def __new__(cls, values: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values: Tensor) -> None:
        self.values_ = values

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values_"], None

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"Inner dispatch {function}")


def blocks(*layers: nn.Module, **named: nn.Module) -> nn.Module:
    """A model with ``layers`` in its blocks, and a further block of an ordinary Linear and ``named``."""
    model = nn.Module()
    model.layers = nn.ModuleList(layers)
    if named:
        block = nn.ModuleDict({"plain": nn.Linear(6, 8), **named})
        model.layers.append(block)
    return model


def quantised(dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(6, 8)
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    return layer


def wrapped_weight() -> nn.Linear:
    layer = nn.Linear(6, 8)
    layer.weight = nn.Parameter(Inner(layer.weight.detach()), requires_grad=False)
    return layer


class Packed(nn.Module):
    """Like the layers of GPTQ and AWQ: not a Linear, and with integers instead of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(3, 4, dtype=torch.int32))


QUANTISED = {
    "float8": lambda: quantised(torch.float8_e4m3fn),
    "int8": lambda: quantised(torch.int8),
    "tensor subclass": wrapped_weight,
    "packed": Packed,
}


READS_WEIGHTS = [rosa.RosaConfig(rank=2), rosa.DoraConfig(rank=2), rosa.ReloraConfig(rank=2)]
REFUSED = [(kind, config) for kind in QUANTISED for config in READS_WEIGHTS]
REFUSED.append(("packed", rosa.LoraConfig(rank=2)))  # it trains on the others: test_adapter_quantised.py


@pytest.mark.parametrize(("kind", "config"), REFUSED, ids=lambda value: getattr(value, "method", value))
def test_quantised_weights_are_refused_by_name(kind: str, config: rosa.AdapterConfig) -> None:
    text = r"layers\.\w+(\.odd)? cannot be adapted: its weight \(.*\) is quantised, which .* takes: .* dequantise it"
    for model in (blocks(odd=QUANTISED[kind]()), blocks(QUANTISED[kind]())):  # also if nothing else matches
        with pytest.raises(rosa.AdapterError, match=text):
            rosa.inject(model, config)
        assert not rosa.adapter_layers(model)


PARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "bias": lambda layer: parametrize.register_parametrization(layer, "bias", nn.Identity()),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=["rosa", "lora"])
@pytest.mark.parametrize("kind", PARAMETRISED)
def test_parametrised_weights_are_refused_by_name(kind: str, config: rosa.AdapterConfig) -> None:
    x = torch.randn(3, 6)
    layer = nn.Linear(6, 8)
    PARAMETRISED[kind](layer)
    model = blocks(odd=layer)
    with pytest.raises(rosa.AdapterError, match=r"layers\.0\.odd cannot be adapted: .*remove_parametrizations"):
        rosa.inject(model, config)
    if kind == "weight_norm":  # the way out that the message names
        parametrize.remove_parametrizations(layer, "weight")
        expected = layer(x)
        rosa.inject(model, config)
        torch.testing.assert_close(model.layers[0].odd(x), expected)


def test_a_forward_of_its_own_is_left_out_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    odd = {
        "doubled": Doubled(6, 8),
        "conv": DoubledConv1D(8, 6),
        "router": Llama4Router(SimpleNamespace(hidden_size=6, num_local_experts=8, num_experts_per_tok=1)),
        "replaced": nn.Linear(6, 8),
    }
    odd["replaced"].forward = lambda x: x  # type: ignore[method-assign]
    x = torch.randn(3, 6)
    model = blocks(**odd, rewritten=Rewritten(6, 8))
    before = {name: odd[name](x) for name in odd if name != "router"}
    with caplog.at_level(logging.WARNING, "rosa"):
        rosa.inject(model, rosa.RosaConfig(rank=2))
    assert list(rosa.adapter_layers(model)) == ["layers.0.plain", "layers.0.rewritten"]
    assert all(torch.equal(odd[name](x), out) for name, out in before.items())
    (message,) = caplog.messages
    assert all(f"layers.0.{name}" in message for name in odd) and "forward of its own" in message

    for name in odd:
        for targets in ([name], rf".*\.({name}|plain)"):
            model = blocks(**odd)
            with pytest.raises(rosa.AdapterError, match=rf"layers\.0\.{name} cannot be adapted: .*forward of its own"):
                rosa.inject(model, rosa.RosaConfig(rank=2, target_modules=targets))
            assert not rosa.adapter_layers(model)
    with pytest.raises(rosa.AdapterError, match=r"nothing to adapt matches the default.*layers\.0: its class computes"):
        rosa.inject(blocks(Doubled(6, 8)), rosa.RosaConfig(rank=2))


def test_falcons_own_linear_is_an_ordinary_layer() -> None:
    torch.manual_seed(0)
    settings = dict(vocab_size=61, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, bos_token_id=0)
    model = FalconForCausalLM(FalconConfig(**settings, eos_token_id=0, bias=True)).eval()
    before = logits(model)
    rosa.inject(model, rosa.RosaConfig(rank=2))
    assert len(rosa.adapter_layers(model)) == 4
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", [["lm_head"], r".*lm_head"])
def test_a_tied_layer_that_was_asked_for_is_reported(targets: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Module()
    model.one, model.two = make_model("gpt2"), make_model("llama")  # two heads, one of them tied
    with caplog.at_level(logging.WARNING, "rosa"):
        rosa.inject(model, rosa.LoraConfig(rank=2, target_modules=targets))
    assert list(rosa.adapter_layers(model)) == ["two.lm_head"]
    assert caplog.messages == ["not adapted: one.lm_head: it shares its weight with another module"]


def test_a_layer_tied_through_its_data_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """ROSA would write W_f into the embedding too."""
    model = make_model("llama")
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.data)
    before = logits(model)
    with caplog.at_level(logging.WARNING, "rosa"):
        rosa.inject(model, rosa.RosaConfig(rank=2, target_modules="lm_head|.*q_proj"))
    assert caplog.messages == ["not adapted: lm_head: it shares its weight with another module"]
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)


def test_a_model_without_values_is_read_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    settings = dict(vocab_size=61, hidden_size=24, intermediate_size=16, num_hidden_layers=2, num_local_experts=3)
    config = MixtralConfig(**settings, num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        counted = MixtralForCausalLM(config)
    with caplog.at_level(logging.WARNING, "rosa"):
        rosa.inject(counted, rosa.LoraConfig(rank=2))
    assert not caplog.messages and len(rosa.adapter_layers(counted)) == 2 * 4


@pytest.mark.parametrize("kind", [tuple, set, frozenset])
def test_name_endings_in_any_collection(kind: Any, tmp_path: Any) -> None:
    model = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2, target_modules=kind(["c_fc", "c_attn"])))
    assert len(rosa.adapter_layers(model)) == 4
    rosa.save_adapter(model, tmp_path, exact=True)
    assert digests(rosa.load_adapter(make_model("gpt2"), tmp_path)) == digests(model)
    with pytest.raises(rosa.AdapterError, match="at least one name ending"):
        rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2, target_modules=kind()))


def test_a_users_own_module_called_module_keeps_its_name() -> None:
    model = blocks(nn.ModuleDict({"module": nn.ModuleDict({"fc": nn.Linear(6, 8)}), "fc": nn.Linear(6, 8)}))
    wrapped = nn.Module()
    wrapped.module = model
    rosa.inject(wrapped, rosa.RosaConfig(rank=2))
    for outer in (wrapped, model):
        assert list(rosa.adapter_layers(outer)) == ["layers.0.module.fc", "layers.0.fc"]
    assert len(list(rosa.adapter_layers(rosa.merge(wrapped)).values())) == 2
    assert all(layer.merged for layer in rosa.adapter_layers(wrapped).values())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_peft_is_refused(family: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn" if family == "gpt2" else "q_proj"])
    whole = peft.get_peft_model(make_model(family), config)
    for model in (whole, whole.get_base_model()):
        before = digests(model)
        with pytest.raises(rosa.AdapterError, match="merge_and_unload"):
            rosa.inject(model, rosa.RosaConfig(rank=2))
        assert digests(model) == before
    rosa.inject(whole.merge_and_unload(), rosa.RosaConfig(rank=2))


def test_a_rank_above_one_small_layers_names_the_way_out() -> None:
    model = blocks(small=nn.Linear(6, 2))
    with pytest.raises(rosa.AdapterError, match=r"layers\.0\.small: .*at most 2.*rank=0\.05.*target_modules"):
        rosa.inject(model, rosa.RosaConfig(rank=4))


def test_the_configuration_is_copied(tmp_path: Any) -> None:
    config = rosa.RosaConfig(rank=4, target_modules=["c_fc"])
    model, other = (rosa.inject(make_model("gpt2"), config) for _ in range(2))
    config.rank, config.seed = 8, 99
    config.target_modules.append("c_attn")  # type: ignore[union-attr]
    rosa.save_adapter(model, tmp_path, exact=True)
    assert digests(rosa.load_adapter(make_model("gpt2"), tmp_path)) == digests(model)
    rosa.resample(model, 1)
    config.seed = 0
    rosa.resample(other, 1)
    assert digests(model) == digests(other)


@pytest.mark.parametrize("pattern", ["(" * 5000 + ")" * 5000, "c_attn{99999999999}"])
def test_an_expression_that_cannot_be_compiled_is_named(pattern: str) -> None:
    with pytest.raises(rosa.AdapterError, match="not a regular expression"):
        rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2, target_modules=pattern))
