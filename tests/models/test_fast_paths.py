"""Every fast path equals the plain one: products, activations, compiled blocks. None waits for the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import GELUTanh
from transformers.pytorch_utils import Conv1D

import rosa
from rosa.fused import adapted_product
from tests.rosa.cases import FAMILIES, make_model
from utils.errors import UserError
from utils.models import compilation
from utils.models import loading as models
from utils.models.compilation import compile_blocks, should_compile
from utils.models.fast_modules import BitDropout
from utils.models.loading import load_model
from utils.models.token_loss import TokenLoss
from utils.runs import Run
from utils.training import loop
from utils.training.training import Training

METHODS = ("rosa", "lora", "none")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_product_and_its_gradients_are_those_of_its_formula(transposed: bool, bias: bool) -> None:
    torch.manual_seed(0)
    double = torch.float64
    weight = torch.randn(7, 5, dtype=double).T if transposed else torch.randn(5, 7, dtype=double)
    x = torch.randn(2, 3, 5, dtype=double, requires_grad=True)
    a, b = (torch.randn(*shape, dtype=double, requires_grad=True) for shape in ((5, 2), (2, 7)))
    c = torch.randn(7, dtype=double, requires_grad=True) if bias else None
    inputs = [tensor for tensor in (x, a, b, c) if tensor is not None]
    out = adapted_product(x, weight, c, a, b)
    expected = x @ weight + (x @ a) @ b + (0 if c is None else c)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, upstream)
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs, upstream))


def test_under_autocast_the_product_is_as_near_as_separate_ones() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 48, requires_grad=True), torch.randn(48, 32) / 7
    a, b = torch.randn(48, 5).div_(7).requires_grad_(), torch.randn(5, 32).div_(2).requires_grad_()
    exact_out = x @ weight + (x @ a) @ b
    exact = exact_out, *torch.autograd.grad(exact_out.square().sum(), (x, a, b))
    with torch.autocast("cpu", torch.bfloat16):
        out = adapted_product(x, weight, None, a, b)
        assert out.dtype == torch.bfloat16
        separate_out = x @ weight + (x @ a) @ b
    found = out, *torch.autograd.grad(out.float().square().sum(), (x, a, b))
    separate = separate_out, *torch.autograd.grad(separate_out.float().square().sum(), (x, a, b))
    for one, other, true in zip(found, separate, exact, strict=True):
        error, allowed = (one.float() - true).norm(), (other.float() - true).norm()
        assert 0 < error < 1.2 * allowed, (float(error), float(allowed))


def test_a_base_weight_that_trains_gets_its_gradient() -> None:
    base = Conv1D(6, 4)
    model = torch.nn.ModuleDict({"h": torch.nn.ModuleList([base])})
    rosa.inject(model, rosa.LoraConfig(rank=2, alpha=6))
    layer = next(iter(rosa.adapter_layers(model).values()))
    with torch.no_grad():
        layer.B.normal_()
    x = torch.randn(3, 4)
    frozen = layer(x)
    base.weight.requires_grad_()
    torch.testing.assert_close(layer(x), frozen)
    layer(x).sum().backward()
    torch.testing.assert_close(base.weight.grad, x.sum(0)[:, None].expand(4, 6))


def test_faster_modules_compute_the_same(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(90, (2, 40), generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patch:
        patch.setattr(models, "use_faster_modules", lambda model: None)
        plain = load_model(str(small_model)).eval()
    fast = load_model(str(small_model)).eval()
    kinds = {name: type(module) for name, module in fast.named_modules() if not list(module.children())}
    assert kinds["transformer.h.1.mlp.act"] is GELUTanh and kinds["transformer.h.0.attn.resid_dropout"] is BitDropout
    assert torch.nn.Dropout not in kinds.values()
    assert not {type(module) for module in plain.modules()} & {GELUTanh, BitDropout}
    torch.testing.assert_close(fast(ids).logits, plain(ids).logits, atol=1e-6, rtol=1e-5)
    assert not torch.equal(fast.train()(ids).logits, fast(ids).logits)  # it does drop


@pytest.mark.parametrize("p", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(400, 501), (1, 3, 7)])
def test_dropout_by_bits(shape: tuple[int, ...], p: float) -> None:
    """Elements are kept with probability 1 - p (within 5 standard deviations) and scaled to an exact mean, and so are
    their gradients."""
    dropout = BitDropout(p).train()
    torch.manual_seed(1)
    x = torch.rand(*shape, dtype=torch.float64).add_(1).requires_grad_()
    out = dropout(x)
    kept = out != 0
    count = x.numel()
    assert abs(int(kept.sum()) - count * (1 - p)) <= 5 * (count * p * (1 - p)) ** 0.5 + 1
    scale = 65536 / (65536 - round(p * 65536))
    torch.testing.assert_close(out, torch.where(kept, x * scale, 0.0), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, kept.double() * scale)
    torch.manual_seed(1)
    assert not torch.equal(dropout(x), dropout(x)) or count < 100
    assert torch.equal(dropout.eval()(x), x)


def test_neighbours_are_dropped_independently() -> None:
    """Four elements share a 64-bit random number, but are dropped independently."""
    torch.manual_seed(2)
    kept = (BitDropout(0.3).train()(torch.ones(4_000_000)) != 0).view(-1, 4).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlations.abs().max() < 5 / 1000  # the standard deviation is 1 / sqrt(10^6)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(p: float) -> None:
    x = torch.rand(50)
    assert torch.equal(BitDropout(p).train()(x), torch.nn.functional.dropout(x, p))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_neither_lengths_nor_resamples_compile_again(family: str, method: str) -> None:
    """Graphs are captured as in real compilation, but run without code generation, which takes minutes."""
    torch._dynamo.reset()
    model = make_model(family)
    config = {"rosa": rosa.RosaConfig(rank=3), "lora": rosa.LoraConfig(rank=3), "none": None}[method]
    if config is not None:
        rosa.inject(model, config)
    model.train()
    plain, token_loss = TokenLoss(model), TokenLoss(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    names = [name for name, _ in model.named_parameters()]
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    shapes, counts = [(4, 16), (3, 24), (5, 8), (2, 32), (4, 16)], []
    expected = []
    for number, (size, length) in enumerate(shapes):
        ids = torch.randint(60, (size, length), generator=torch.Generator().manual_seed(number))
        positions = torch.arange(size * length).view(size, length)[:, :-1].flatten()
        labels = ids[:, 1:].flatten()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            expected.append(float(plain(ids, positions, labels)[0]))
        if number == 0:
            assert len(compilation.blocks(model)) == 2
            compile_blocks(model, counter)
        total, _ = token_loss(ids, positions, labels)
        assert total.item() == pytest.approx(expected[-1], rel=1e-5)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        if method != "none":
            rosa.resample(model, number + 1, optimizer)
        counts.append(counter.frame_count)
    assert 0 < counts[0] == counts[-1], counts
    assert [name for name, _ in model.named_parameters()] == names


def test_later_runs_of_a_process_are_compiled_too(small_model: Path) -> None:
    """A function has a limited number of graphs, which those of earlier models would take."""
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    ids = torch.randint(60, (3, 16))
    frames = []
    for rank in range(1, 12):
        model = load_model(str(small_model), 0.0)
        rosa.inject(model, rosa.LoraConfig(rank=rank), keep_base=False)
        compile_blocks(model, counter)
        TokenLoss(model)(ids, torch.arange(47), ids.flatten()[1:])
        frames.append(counter.frame_count)
    assert [after - before for before, after in itertools.pairwise(frames)] == [frames[0]] * 10 and frames[0] > 0


def test_compilation_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    found = {"triton"}
    monkeypatch.setattr(compilation.shutil, "which", lambda name: name in found or None)
    monkeypatch.setattr(compilation.importlib.util, "find_spec", lambda name: name in found or None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    assert not should_compile("auto", cpu) and not should_compile(False, cpu) and not should_compile(False, cuda)
    assert not caplog.messages
    for device, needed in (
        (cuda, "the C compiler gcc or clang"), (cuda, "the package triton"), (cpu, r"the C\+\+ compiler (g|clang)\+\+")
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"train\.compile=true needs {needed}.* on {device.type}: install it"):
            should_compile(True, device)
        assert not should_compile("auto", device)
        found.clear()
    assert [text.partition(", without ")[2] for text in caplog.messages] == [
        "the C compiler gcc or clang", "the package triton",
    ]  # fmt: skip
    found |= {"triton", "gcc-14", "clang++-18"}
    monkeypatch.setenv("CC", "gcc-14")
    monkeypatch.setenv("CXX", "clang++-18")
    assert should_compile("auto", cuda) and should_compile(True, cuda) and should_compile(True, cpu)


def refused_without_compiler(train: Callable[..., Run]) -> None:
    """train.compile=true names the compiler that is missing, and trains nothing."""
    with pytest.raises(UserError, match=r"train\.compile=true needs the C\+\+ compiler .*: install it, or leave"):
        train("train.compile=true", "model.dropout=0", "seed=3")


def test_compiled_training_without_a_compiler(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused_without_compiler(train)


def test_compiled_training_gives_the_losses_of_plain_training(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another value of train.compile continues the same run. A counting backend replaces the blocks' code generator.
    The loss of a chunk is really compiled, so that a machine without a compiler can only refuse."""
    if compilation._missing(torch.device("cpu")):
        return refused_without_compiler(train)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    monkeypatch.setattr("utils.models.token_loss.compile_blocks", lambda model: compile_blocks(model, counter))
    torch._dynamo.reset()
    run = train("train.compile=true", "model.dropout=0", "seed=3")
    compiled = [point["loss"] for point in run.metrics("validation")]
    assert counter.frame_count > 0
    (run.path).rename(run.path.with_name("compiled"))
    plain = train("train.compile=false", "model.dropout=0", "seed=3")
    assert plain.path == run.path
    assert [point["loss"] for point in plain.metrics("validation")] == pytest.approx(compiled, rel=1e-5)


class Waits(TorchDispatchMode):
    """Notes operations that need a value on the host, for which the host would wait for a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "allclose")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.NAMES:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_waits_for_the_device_between_logging_points(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    waits, steps = Waits(), []
    original = loop.train_step

    def watched(training: Training, indices: list[int], wants_norm: bool) -> Any:
        if wants_norm:
            return original(training, indices, wants_norm)
        steps.append(training.progress.step)
        with waits:
            return original(training, indices, wants_norm)

    monkeypatch.setattr(loop, "train_step", watched)
    train(f"fnmodel.name={method}", "logging.print_freq=4", "train.micro_batch_size=8")
    assert len(steps) > 8
    assert waits.found == []
    with waits:
        torch.ones(1).item()
    assert waits.found == ["_local_scalar_dense"]
