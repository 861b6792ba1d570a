"""Training in bfloat16 on a CPU, and its fast paths, each against the plain formula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import rosa
from rosa import fused
from utils.errors import UserError
from utils.models import attention, token_loss
from utils.models.attention import _DenseAttention
from utils.models.fast_modules import LEVELS, draw_kept, keep_only
from utils.models.token_loss import cross_entropy_and_softmax
from utils.processes import devices
from utils.processes.signals import Interrupted
from utils.runs import Run
from utils.training import loop

DROPPED = round(0.3 * LEVELS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_keeping_by_bits_is_where(dtype: torch.dtype) -> None:
    x = torch.tensor([1.5, -2.0, torch.nan, torch.inf, -torch.inf, -0.0] * 20).to(dtype).view(2, 60).T
    kept = draw_kept(x.shape, LEVELS // 2)
    torch.testing.assert_close(keep_only(x, kept), torch.where(kept, x, 0.0), rtol=0, atol=0, equal_nan=True)


def explicit_attention(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, scale: float, up: float) -> Tensor:
    """The formula: softmax(scale Q Kᵀ + causal mask), dropped and scaled up, times V; (B, T, H, D)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    later = torch.full((query.shape[2],) * 2, -torch.inf, dtype=query.dtype).triu(1)
    probabilities = torch.softmax(scale * query @ key.transpose(2, 3) + later, -1)
    return (probabilities * kept.view(probabilities.shape) * up @ value).transpose(1, 2)


@pytest.mark.parametrize("dropped", [0, DROPPED])
@pytest.mark.parametrize("key_heads", [6, 2])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_dense_attention_is_its_formula(dtype: torch.dtype, tolerance: float, key_heads: int, dropped: int) -> None:
    torch.manual_seed(0)
    heads = [6, key_heads, key_heads]
    packed = torch.randn(2, 7, sum(heads), 8, dtype=torch.float64).to(dtype)  # one tensor, strided views, as in GPT-2
    upstream = torch.randn(2, 7, 6, 8, dtype=torch.float64)

    def result(dtype: torch.dtype, attention: Callable[..., Tensor]) -> list[Tensor]:
        inputs = packed.to(dtype).requires_grad_()
        out = attention(*(part.transpose(1, 2) for part in inputs.split(heads, 2)))
        return [out, *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]

    torch.manual_seed(1)
    found = result(dtype, lambda q, k, v: _DenseAttention.apply(q, k, v, 0.4, dropped))
    torch.manual_seed(1)
    kept = draw_kept((12, 7, 7), dropped) if dropped else torch.ones(12, 7, 7)
    up = LEVELS / (LEVELS - dropped)
    exact = result(torch.float64, lambda q, k, v: explicit_attention(q, k, v, kept, 0.4, up))
    for one, true in zip(found, exact, strict=True):
        assert one.dtype == dtype
        assert (one - true).norm() < tolerance * true.norm()


@pytest.mark.parametrize("dropout", [0.0, 1 / LEVELS])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_short_rows_in_bfloat16_take_dense_attention(
    key_heads: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model whose queries autocast leaves in float32; gradients are as near to float32's as those of SDPA."""
    shape = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=key_heads, **shape))
    tokens, weight = torch.randint(50, (3, 20)), model.model.layers[0].self_attn.q_proj.weight
    taken: list[int] = []
    monkeypatch.setattr(attention._DenseAttention, "forward", counted(attention._DenseAttention.forward, taken))

    def gradient(dtype: torch.dtype, short: int) -> Tensor:
        monkeypatch.setattr(attention, "SHORT", short)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16), attention.causal_attention(model, 20):
            loss = model(tokens, labels=tokens).loss
        return torch.autograd.grad(loss, weight)[0]

    exact, sdpa = gradient(torch.float32, 20), gradient(torch.bfloat16, 19)
    assert not taken
    model.model.layers[0].self_attn.attention_dropout = dropout  # so rare that none is dropped
    dense = gradient(torch.bfloat16, 20)
    assert taken
    assert (dense - exact).norm() < 1.2 * (sdpa - exact).norm()


def counted(function: Callable[..., Any], calls: list[int]) -> Any:
    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return staticmethod(counting)


def test_softmax_of_a_few_rows_at_a_time_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_loss, "CACHED_LOGITS", 40)
    logits, labels = torch.randn(23, 13), torch.randint(13, (23,))
    losses, softmax = cross_entropy_and_softmax(logits.clone(), labels)
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(softmax, logits.softmax(1))


def adapted(transposed: bool, scale: float = 1.0) -> Any:
    base = nn.Linear(48, 32) if transposed else Conv1D(32, 48)
    model = nn.ModuleDict({"h": nn.ModuleList([base.requires_grad_(False)])})
    rosa.inject(model, rosa.LoraConfig(rank=5, alpha=5 * scale))
    layer = next(iter(rosa.adapter_layers(model).values()))
    with torch.no_grad():
        layer.B.normal_()
    return layer


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("transposed", [True, False])
def test_the_sum_in_kept_memory(transposed: bool, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """W + A B in bfloat16: within one rounding, of the present values in each forward pass, whoever wrote them."""
    monkeypatch.setattr(fused, "CACHED", 100)
    torch.manual_seed(0)
    layer, x = adapted(transposed, scale), torch.randn(3, 48)
    for write in (lambda: None, lambda: layer.B.data.mul_(3), lambda: layer.base.weight.data.neg_()):
        write()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        exact = layer.weight_mn + scale * layer.A @ layer.B
        error = (layer._sum.values.float() - exact).abs()
        assert (error <= (exact.abs() + (scale * layer.A.abs() @ layer.B.abs())) * 2**-7).all()


def test_a_graph_of_older_values_is_refused() -> None:
    layer, x = adapted(False), torch.randn(3, 48, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        twice = layer(x).sum() + layer(x).sum()  # one layer twice in a graph, as models that share blocks have it
        twice.backward()
        older = layer(x).sum()
        with torch.no_grad():
            layer.B.add_(1)
        layer(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            older.backward()
        with torch.inference_mode():
            layer(x)
        layer(x).sum().backward()


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("processor: 0\nflags\t\t: fpu sse avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("flags : fpu avx512f amx_tile\nmodel name : an avx512_bf16 lookalike\n", False),
        (None, False),
    ],
)
def test_the_flags_of_a_cpu(cpuinfo: str | None, found: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(devices, "CPUINFO", file)
    assert devices.cpu_has_bf16.__wrapped__() is found


@pytest.fixture
def has_bf16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Say whether this machine's CPU has bfloat16; any hidden size will do."""
    monkeypatch.setattr(devices, "BF16_HIDDEN_SIZE", 8)
    return lambda answer: monkeypatch.setattr(devices, "cpu_has_bf16", lambda: answer)


def precision_of(run: Run) -> str:
    return run.record()["hardware"]["precision"]


def test_auto_takes_bf16_and_a_run_keeps_its_precision(
    train: Callable[..., Run], has_bf16: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of bf16 goes on in bf16 on a machine without it, one of float32 in float32 on a machine with it."""
    has_bf16(False)
    plain = train("train.epochs=1")
    assert precision_of(plain) == "fp32"
    has_bf16(True)
    assert train("train.epochs=1").path == plain.path  # finished: it is found again
    half = train("train.epochs=2")
    assert precision_of(half) == "bf16" and half.path == train("train.epochs=2", "train.precision=bf16").path
    has_bf16(False)
    assert train("train.epochs=2").path == half.path
    assert half.path != train("train.epochs=2", "train.precision=fp32").path


def test_a_resume_keeps_the_precision(
    train: Callable[..., Run], has_bf16: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It also goes on to the same bits as a run that was not interrupted."""

    end = loop.end_epoch

    def end_and_stop(training: Any) -> None:
        end(training)
        raise Interrupted("SIGTERM")

    has_bf16(True)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "end_epoch", end_and_stop)
        train("train.epochs=2")
    has_bf16(False)
    run = train("train.epochs=2")
    assert precision_of(run) == "bf16"
    whole = train("train.epochs=2", "train.precision=bf16", f"output.path={tmp_path / 'whole'}")
    assert run.record()["last"] == whole.record()["last"]


@pytest.mark.parametrize(("own", "auto"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_no_bfloat16_that_a_gpu_emulates(own: bool, auto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def has(including_emulation: bool = True) -> bool:
        return own or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", has)
    assert devices.resolve_precision("auto", "cuda") == auto
    assert devices.resolve_precision("bf16", "cuda") == "bf16"


def test_a_precision_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UserError, match=r"precision bf16 \(runs/x began in it\) is not supported by this GPU"):
        devices.check_precision("bf16", "cuda", "runs/x began in it")
    with pytest.raises(UserError, match=r"train\.precision=fp16 needs a CUDA device"):
        devices.resolve_precision("fp16", "cpu")
