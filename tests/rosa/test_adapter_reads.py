"""Models that do more than call layers: they read ``weight``, hook a module, write into its output or offload it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from torch import Tensor, nn

import rosa
from tests.rosa.cases import adapt, logits, make_model, make_optimizer, tokens, train_steps

SMALL = dict(hidden_size=16, num_hidden_layers=2)
ATTENTION = dict(**SMALL, num_attention_heads=2, intermediate_size=32)
METHODS = {"rosa": rosa.RosaConfig(rank=2, bias="none"), "lora": rosa.LoraConfig(rank=2, alpha=6)}


def ids() -> dict[str, Tensor]:
    return {"input_ids": tokens(2, 6)}


def mamba() -> tuple[Any, dict[str, Tensor]]:
    config = transformers.MambaConfig(vocab_size=61, **SMALL, state_size=4, time_step_rank=4)
    return transformers.MambaForCausalLM(config), ids()


def wavlm() -> tuple[Any, dict[str, Tensor]]:
    convolutions = dict(conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3))
    positions = dict(num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    config = transformers.WavLMConfig(**ATTENTION, **convolutions, **positions)
    return transformers.WavLMModel(config), {"input_values": torch.randn(2, 400)}


def siglip() -> tuple[Any, dict[str, Tensor]]:
    config = transformers.SiglipVisionConfig(**ATTENTION, image_size=8, patch_size=4)
    return transformers.SiglipVisionModel(config), {"pixel_values": torch.randn(2, 3, 8, 8)}


def t5() -> tuple[Any, dict[str, Tensor]]:
    sizes = dict(d_model=16, d_ff=32, d_kv=8, num_layers=2, num_heads=2)
    config = transformers.T5Config(vocab_size=61, **sizes, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config), {**ids(), "decoder_input_ids": tokens(2, 6)}


def encoder() -> tuple[Any, dict[str, Tensor]]:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2), {"src": torch.randn(2, 5, 16)}


def output(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    found = model(**inputs)
    names = ("logits", "pooler_output", "last_hidden_state")
    return found if isinstance(found, Tensor) else next(found[name] for name in names if name in found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [mamba, wavlm, siglip, t5, encoder], ids=lambda make: make.__name__)
def test_a_model_that_reads_a_weight_keeps_its_function_and_trains_every_pair(make: Any, method: str) -> None:
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and make is not t5:
                parameter.mul_(5)  # the weights of a fresh model are too small to show an error
    before = output(model, inputs).detach()
    targets = ["out_proj"] if make is siglip else None
    config = dataclasses.replace(METHODS[method], target_modules=targets)
    layers = rosa.adapter_layers(rosa.inject(model, config)).values()
    tolerance = 2e-5 * float(before.abs().max())
    torch.testing.assert_close(output(model, inputs), before, atol=tolerance, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(output(model, inputs), before, atol=tolerance, rtol=0)  # an encoder's fast path
        for layer in layers:
            nn.init.normal_(layer.B, std=0.1)
    trained = output(model, inputs)
    trained.square().sum().backward()
    assert all(layer.A.grad.any() and layer.B.grad.any() for layer in layers)
    with torch.no_grad(), rosa.merged(model):
        torch.testing.assert_close(output(model, inputs), trained.detach(), atol=tolerance, rtol=0)
    assert (trained.detach() - before).abs().max() > 100 * tolerance


@pytest.mark.parametrize("config", [*METHODS.values(), rosa.LoraConfig(rank=2, dropout=0.5)], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_weight_is_that_of_the_function(family: str, config: rosa.AdapterConfig) -> None:
    model = adapt(family, config, torch.float64)
    for layer in rosa.adapter_layers(model).values():
        with torch.no_grad():
            nn.init.normal_(layer.B)
        layer.eval()
        identity = torch.eye(layer.in_features, dtype=torch.float64)
        bias = 0 if layer.bias is None else layer.bias
        columns = layer(identity) - bias
        weight = layer.weight.T if layer.transposed else layer.weight
        assert layer.weight.shape == layer.base.weight.shape
        torch.testing.assert_close(weight, columns)
        upstream = torch.randn_like(weight)
        found = torch.autograd.grad(weight, (layer.A, layer.B), upstream)
        torch.testing.assert_close(found, torch.autograd.grad(columns, (layer.A, layer.B), upstream))
        with torch.autocast("cpu", torch.bfloat16):  # as a parameter: read in its own type
            torch.testing.assert_close(layer.weight.T if layer.transposed else layer.weight, weight)
        layer.merge()
        assert layer.weight is layer.base.weight
        torch.testing.assert_close(layer.weight.T if layer.transposed else layer.weight, weight)


def writes(model: nn.Module, inputs: Tensor) -> Tensor:
    out: Tensor = model.layers[0](inputs)
    out += inputs
    return nn.functional.relu_(out.mul_(2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_outputs_may_be_written_into(method: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(8, 8)])
    x = torch.randn(shape, requires_grad=True)
    expected = writes(model, x)
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    rosa.inject(model, METHODS[method])
    found = writes(model, x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_hooks_of_the_base_see_and_change_what_the_layer_does(method: str) -> None:
    """Hooks registered before or after the injection, on the base module or the layer, run once per call."""
    torch.manual_seed(2)
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(6, 4)])
    base, x = model.layers[0], torch.randn(3, 6)
    plain = base(2 * x).detach()
    seen: list[Tensor] = []

    def double_output(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append(out.detach())
        return 2 * out

    doubling = base.register_forward_hook(double_output)
    base.register_forward_pre_hook(lambda module, args, kwargs: ((2 * args[0],), kwargs), with_kwargs=True)
    rosa.inject(model, METHODS[method])
    layer = model.layers[0]

    def check(factor: int, calls: int) -> None:
        seen.clear()
        torch.testing.assert_close(layer(x), factor * plain, atol=1e-5, rtol=0)
        assert len(seen) == calls
        for out in seen:
            torch.testing.assert_close(out, plain, atol=1e-5, rtol=0)

    check(2, calls=1)
    base.weight.requires_grad_()  # so that the fused product is not used
    check(2, calls=1)
    base.weight.requires_grad_(False)
    with rosa.merged(model):
        torch.testing.assert_close(model.layers[0](x), 2 * plain, atol=1e-5, rtol=0)
    layer.merge()
    check(2, calls=1)
    layer.unmerge()
    doubling.remove()
    check(1, calls=0)
    layer.base.register_forward_hook(double_output)
    check(2, calls=1)
    torch.testing.assert_close(copy.deepcopy(model).layers[0](x), 2 * plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(rosa.unwrap(model).layers[0](x), 2 * plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_hooks_of_the_base(method: str) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(6, 4)])
    x, seen = torch.randn(3, 6, requires_grad=True), []
    model.layers[0].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_input[0]))
    layer = rosa.inject(model, METHODS[method]).layers[0]
    layer(x).sum().backward()
    torch.testing.assert_close(seen, [x.grad])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_offloading_an_adapted_model_is_exact(family: str, method: str) -> None:
    model = adapt(family, METHODS[method])
    expected = logits(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(layer.base.weight.is_meta for layer in rosa.adapter_layers(model).values())
    torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=0)


def test_an_offloaded_model_is_refused_with_the_way_out() -> None:
    model = make_model("gpt2")
    expected = logits(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(
        rosa.AdapterError,
        match=r"h\.0\.attn\.c_attn cannot be adapted: .*offloaded.*hooks\.remove_hook_from_submodules",
    ):
        rosa.inject(model, METHODS["rosa"])
    with pytest.raises(rosa.AdapterError, match=r"offloaded"):
        rosa.train_only(model, "all-linear")
    torch.testing.assert_close(logits(model), expected)
    accelerate.hooks.remove_hook_from_submodules(model)  # the way out that the message names
    rosa.inject(model, METHODS["rosa"])
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def test_what_writes_into_an_offloaded_model_is_refused(tmp_path: Path) -> None:
    """A merge into weights that are elsewhere was lost, and the model computed x W_f + b from then on."""
    model = adapt("llama", METHODS["rosa"])
    rosa.save_adapter(model, tmp_path)
    train_steps(model, make_optimizer(model))
    expected = logits(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    calls: list[Any] = [
        rosa.merge,
        rosa.unwrap,
        lambda m: rosa.resample(m, 1),
        lambda m: rosa.save_adapter(m, tmp_path),
    ]
    calls += [lambda m: rosa.load_adapter(m, tmp_path), lambda m: rosa.export(m, tmp_path)]
    calls += [lambda m: rosa.disabled(m).__enter__()]
    for call in calls:
        with pytest.raises(rosa.AdapterError, match=r"q_proj: its weight is offloaded.*remove_hook_from_submodules"):
            call(model)
    torch.testing.assert_close(logits(model), expected, atol=1e-6, rtol=0)
    accelerate.hooks.remove_hook_from_submodules(model)
    with rosa.disabled(model):
        torch.testing.assert_close(logits(model), logits(make_model("llama")), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(rosa.unwrap(model)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["rosa", "lora"])
def test_a_merged_model_that_was_offloaded_is_refused_with_the_way_out(method: str) -> None:
    """Offloading reads ``state_dict``, which holds the weights without the adapters, and nothing added them."""
    model = adapt("llama", METHODS[method])
    train_steps(model, make_optimizer(model))
    expected = logits(model)
    accelerate.cpu_offload(rosa.merge(model), execution_device=torch.device("cpu"))
    with pytest.raises(rosa.AdapterError, match=r"q_proj: .*from before the merge: .*remove_hook_from_submodules"):
        logits(model)
    accelerate.hooks.remove_hook_from_submodules(model)  # as the message says
    plain = rosa.unwrap(rosa.unmerge(model))
    accelerate.cpu_offload(plain, execution_device=torch.device("cpu"))
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_of_its_own_is_called(method: str) -> None:
    """A replaced forward of a module, as by accelerate, and that of a subclass."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for base in (Doubled(6, 4), nn.Linear(6, 4)):
        x = torch.randn(3, 6)
        base.requires_grad_(False)
        layer = rosa.methods.methods()[method][1]("fc", base, METHODS[method])
        nn.init.normal_(layer.A)
        nn.init.normal_(layer.B)
        if type(base) is nn.Linear:
            base.forward = lambda x, base=base: 2 * nn.Linear.forward(base, x)
        pair = (x @ layer.A) @ layer.B * layer.scale
        torch.testing.assert_close(layer(x), 2 * nn.Linear.forward(base, x) + pair)
