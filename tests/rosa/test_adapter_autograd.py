"""Derivatives beyond one backward pass (torch.func, second derivatives), and the tensors kept for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import rosa
from rosa.fused import adapted_product
from tests.rosa.cases import adapt, tokens

METHODS = {
    "rosa": rosa.RosaConfig(rank=2),
    "rosa-a": rosa.RosaConfig(rank=2, adapt="a"),
    "rosa-b": rosa.RosaConfig(rank=2, adapt="b"),
    "lora": rosa.LoraConfig(rank=2, alpha=6),
}
Parameters = dict[str, Tensor]


class Plain(nn.Module):
    """The formula of a layer, for reference."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.base, self.A, self.B, self.scale = layer.base, layer.A, layer.B, layer.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.A) @ self.B * self.scale


def make(method: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Plain]:
    """A layer of 4 inputs and 3 outputs, and its formula over the same parameters."""
    torch.manual_seed(3)
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 3, dtype=dtype)])
    layer = rosa.inject(model, METHODS[method]).layers[0]
    nn.init.normal_(layer.B.data)
    return layer, Plain(layer)


@pytest.mark.parametrize("wanted", ["per-sample", "vmap", "ensemble", "jacrev", "jacfwd", "jvp", "hessian", "batched"])
@pytest.mark.parametrize("method", METHODS)
def test_transforms_are_those_of_the_formula(method: str, wanted: str) -> None:
    layer, plain = make(method)
    x = torch.randn(5, 4, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}  # the frozen weight too

    def loss(module: nn.Module) -> Callable[[Parameters, Tensor], Tensor]:
        return lambda given, x: functional_call(module, given, (x,)).square().sum()

    def result(module: nn.Module) -> Any:
        call = loss(module)
        if wanted == "per-sample":
            return vmap(grad(call), in_dims=(None, 0))(parameters, x)
        if wanted == "vmap":
            return vmap(module)(x)
        if wanted == "ensemble":
            stacked = {name: torch.stack([p, 2 * p]) for name, p in parameters.items()}
            return vmap(lambda given: functional_call(module, given, (x,)))(stacked)
        if wanted == "batched":
            out, inputs = module(x), [p for p in (layer.A, layer.B) if p.requires_grad]
            return torch.autograd.grad(out, inputs, torch.eye(15).double().view(15, 5, 3), is_grads_batched=True)
        if wanted == "jvp":
            tangents = {name: p + 1 for name, p in parameters.items()}
            return jvp(lambda given: functional_call(module, given, (x,)), (parameters,), (tangents,))
        transform = {"jacrev": jacrev, "jacfwd": jacfwd, "hessian": hessian}[wanted]
        return transform(call)(parameters, x)

    found, expected = result(layer), result(plain)
    torch.testing.assert_close(found, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x + 1)
        tangents = [torch.autograd.forward_ad.unpack_dual(module(dual)).tangent for module in (layer, plain)]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("fixed", ["", "a", "b"])
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_first_and_second_derivatives_by_differences(shape: tuple[int, ...], fixed: str) -> None:
    torch.manual_seed(4)
    weight = torch.randn(4, 3, dtype=torch.float64)
    shapes = (shape, (3,), (4, 2), (2, 3))
    inputs = tuple(
        torch.randn(*s, dtype=torch.float64, requires_grad=name != fixed)
        for name, s in zip(("x", "bias", "a", "b"), shapes, strict=True)
    )

    def function(x: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return adapted_product(x, weight, bias, a, b)

    assert torch.autograd.gradcheck(function, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_penalty_trains(method: str, autocast: bool) -> None:
    """The gradient by the inputs depends on A and B, also if the operations after the layer need no gradient."""
    layer, plain = make(method, torch.float32)
    x = torch.randn(5, 4, requires_grad=True)

    def penalty(module: nn.Module) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = module(x)
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        trained = [p for p in (layer.A, layer.B) if p.requires_grad]
        direct = torch.autograd.grad(gradient.square().sum(), trained, retain_graph=True)
        (of_inputs,) = torch.autograd.grad(out.square().sum(), trained[-1], create_graph=True)
        return *direct, *torch.autograd.grad(of_inputs.square().sum(), x)

    found, expected = penalty(layer), penalty(plain)
    for own, other in zip(found, expected, strict=True):
        tolerance = dict(atol=0.03 * float(other.abs().max()), rtol=0.03) if autocast else {}
        torch.testing.assert_close(own, other, **tolerance)
    assert all(value.any() for value in expected)


def kept(model: Any, run: Callable[[], Tensor]) -> set[tuple[torch.dtype, int]]:
    """Dtype and size of each tensor, except parameters, that ``run`` saves for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, tuple[torch.dtype, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            found[tensor.untyped_storage().data_ptr()] = tensor.dtype, tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    assert out.requires_grad
    assert len(set(found.values())) == len(found)
    return set(found.values())


def layer_of(method: str, dtype: torch.dtype) -> Any:
    base = nn.Linear(4, 3, dtype=dtype).requires_grad_(False)
    config = {**METHODS, "lora": rosa.LoraConfig(rank=2)}[method]
    return rosa.methods.methods()[config.method][1]("fc", base, config)


@pytest.mark.parametrize("method", METHODS)
def test_the_inputs_and_x_times_a_are_all_that_is_kept(method: str) -> None:
    """T x m numbers if A trains and T x R if B does, in full precision; under autocast copies of W, A and B in 16 bits,
    and of x A only if A does not train.
    """
    inputs, low = (140, method != "rosa-b"), (70, method != "rosa-a")
    for dtype in (torch.float32, torch.bfloat16):
        layer, x = layer_of(method, dtype), torch.randn(5, 7, 4, dtype=dtype, requires_grad=True)
        expected = {(kind, size) for kind, (size, is_kept) in ((dtype, inputs), (torch.float32, low)) if is_kept}
        assert kept(layer, lambda layer=layer, x=x: layer(x * 1)) == expected
    layer, x = layer_of(method, torch.float32), torch.randn(5, 7, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        sizes = (70 if method == "rosa-b" else 140, 4 * 3, 4 * 2, 2 * 3)
        assert kept(layer, lambda: layer(x * 1)) == {(torch.bfloat16, size) for size in sizes}


@pytest.mark.parametrize("method", METHODS)
def test_a_transform_inside_and_around_a_compiled_layer(method: str) -> None:
    torch._dynamo.reset()
    layer, plain = make(method)
    x = torch.randn(5, 4, dtype=torch.float64)

    def gradients() -> list[Tensor]:
        return [p.grad.clone() for p in (layer.A, layer.B) if p.requires_grad]

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    compiled(x).square().sum().backward()
    found = gradients()
    layer.zero_grad()
    plain(x).square().sum().backward()
    torch.testing.assert_close(found, gradients())
    assert counter.frame_count == 1
    mapped = torch.compile(lambda x: vmap(layer)(x), backend=counter, fullgraph=True)
    torch.testing.assert_close(mapped(x), plain(x))


@pytest.mark.parametrize("method", METHODS)
def test_per_sample_gradients_of_a_model(method: str) -> None:
    model = adapt("llama", METHODS[method], torch.float64, attn_implementation="eager")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    trained = {name: p.detach() for name, p in model.named_parameters() if name in names}
    batch = tokens(3, 6)

    def loss(given: Parameters, row: Tensor) -> Tensor:
        return functional_call(model, given, (), {"input_ids": row[None], "labels": row[None]}).loss

    found = vmap(grad(loss), in_dims=(None, 0))(trained, batch)
    for row, sample in enumerate(batch):
        model.zero_grad()
        model(input_ids=sample[None], labels=sample[None]).loss.backward()
        for name, parameter in model.named_parameters():
            if name in names:
                torch.testing.assert_close(found[name][row], parameter.grad)


@pytest.mark.parametrize("kind", [torch.Tensor.detach, nn.Parameter])
def test_values_of_several_pairs_in_one_graph_keep_their_gradients_under_autocast(kind: Any) -> None:
    """As in MAML, or where a network makes the pairs: both calls of a layer are differentiated afterwards."""
    model = adapt("llama", METHODS["lora"])
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def gradients(*, together: bool) -> Tensor:
        torch.manual_seed(0)
        givens = [{name: kind(0.3 * torch.randn(p.shape)).requires_grad_() for name, p in own.items()} for _ in "ab"]
        losses: list[Tensor] = []
        for given in givens:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses.append(functional_call(model, given, (), {"input_ids": tokens(), "labels": tokens()}).loss)
            if not together:
                losses.pop().backward()
        if together:
            torch.stack(losses).sum().backward()
        return torch.cat([value.grad.flatten() for given in givens for value in given.values()])

    expected = gradients(together=False)
    if kind is nn.Parameter:  # these share the layer's buffer: an error instead of the gradients of another pair
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(together=True)
    else:
        assert torch.equal(gradients(together=True), expected)
