"""Resampling: the function stays the same, parameters keep their identity, the optimizer its settings."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rosa
from rosa import resampling as drawing
from rosa.methods.rosa import RosaLayer
from rosa.subspace import short_side_vectors
from rosa.threads import in_order
from tests.rosa.cases import (
    FAMILIES,
    ROSA_CASES,
    Case,
    adapt,
    blocks_weights,
    digests,
    logits,
    make_model,
    make_optimizer,
    train_steps,
    trained,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ROSA_CASES, ids=str)
def test_a_resample_leaves_the_function_unchanged(case: Case, family: str) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model = adapt(family, case.config, dtype)
        optimizer = make_optimizer(model)
        start = logits(model)
        for number in (1, 2, 3):
            losses = train_steps(model, optimizer)
            before = logits(model)
            pairs = {name: layer.A.detach().clone() for name, layer in rosa.adapter_layers(model).items()}
            rosa.resample(model, number, optimizer)
            torch.testing.assert_close(logits(model), before, atol=tolerance, rtol=0)
            assert any(not torch.equal(layer.A, pairs[name]) for name, layer in rosa.adapter_layers(model).items())
            assert losses[-1] < losses[0]
        assert (logits(model) - start).abs().max() > 0.1  # the model keeps what it learned


@pytest.mark.parametrize("optimizer_state", ["reset", "keep"])
def test_parameters_groups_and_the_schedule_stay_and_state_is_as_set(optimizer_state: str) -> None:
    config = rosa.RosaConfig(rank=4, optimizer_state=optimizer_state)
    model = adapt("gpt2", config)
    layers = rosa.adapter_layers(model)
    biases = [p for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")]
    pairs = [p for layer in layers.values() for p in (layer.A, layer.B)]
    optimizer = torch.optim.AdamW([{"params": pairs, "lr": 1e-2}, {"params": biases, "lr": 1e-3, "weight_decay": 0.0}])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(3):
        train_steps(model, optimizer, steps=1)
        schedule.step()
    identity = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    groups = [
        {**{k: v for k, v in group.items() if k != "params"}, "ids": list(map(id, group["params"]))}
        for group in optimizer.param_groups
    ]
    moments = {id(p): optimizer.state[p]["exp_avg"].clone() for p in trained(model)}

    resampler = rosa.Resampler(model, optimizer, config)
    assert resampler.after_epoch(1, 2) and resampler.number == 1 and resampler.seconds > 0

    for parameter in trained(model):  # a gradient of the old subspace has no meaning in the new one
        assert (parameter.grad is None) == any(parameter is p for p in pairs)
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == identity
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert groups == [
        {**{k: v for k, v in group.items() if k != "params"}, "ids": list(map(id, group["params"]))}
        for group in optimizer.param_groups
    ]
    assert schedule.get_last_lr() == [1e-2 / 4, 1e-3 / 4]
    for parameter in biases if optimizer_state == "reset" else trained(model):
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[id(parameter)])
        assert int(optimizer.state[parameter]["step"]) == 3
    if optimizer_state == "reset":
        assert not any(p in optimizer.state for p in pairs)
    train_steps(model, optimizer, steps=1)
    assert int(optimizer.state[pairs[0]]["step"]) == (1 if optimizer_state == "reset" else 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_pair_is_made_of_the_trained_weight(family: str) -> None:
    """The directions are those of W_f + A B after training, not of the pretrained weight."""
    config = rosa.RosaConfig(rank=3, sample_method="top")
    model = adapt(family, config, torch.float64)
    train_steps(model, make_optimizer(model, lr=0.05), steps=5)
    layers = rosa.adapter_layers(model)
    weights = {name: (layer.weight_mn + layer.A @ layer.B).detach() for name, layer in layers.items()}
    pretrained = blocks_weights(make_model(family, dtype=torch.float64))
    rosa.resample(model, 1)
    for name, layer in layers.items():
        u, s, vt = torch.linalg.svd(weights[name], full_matrices=False)
        torch.testing.assert_close((layer.A @ layer.B).detach(), (u[:, :3] * s[:3]) @ vt[:3], atol=1e-10, rtol=0)
        torch.testing.assert_close((layer.weight_mn + layer.A @ layer.B).detach(), weights[name], atol=1e-12, rtol=0)
        assert (weights[name] - pretrained[name]).abs().max() > 1e-2


def test_a_resample_depends_on_seed_and_number_only() -> None:
    config = rosa.RosaConfig(rank=4)
    name = "transformer.h.0.mlp.c_fc"

    def pair_after(numbers: list[int], seed: int = 0) -> torch.Tensor:
        model = adapt("gpt2", rosa.RosaConfig(rank=4, seed=seed), torch.float64)
        for number in numbers:
            rosa.resample(model, number)
        layer = rosa.adapter_layers(model)[name]
        return (layer.A @ layer.B).detach()

    assert config.seed == 0
    torch.testing.assert_close(pair_after([1, 2, 3]), pair_after([3]), atol=1e-10, rtol=0)
    for other in (pair_after([2]), pair_after([3], seed=1), pair_after([])):
        assert (other - pair_after([3])).abs().max() > 1e-2


def test_lora_has_nothing_to_resample() -> None:
    config = rosa.LoraConfig(rank=2)
    model = adapt("gpt2", config)
    before = digests(model)
    rosa.resample(model, 1, make_optimizer(model))
    assert digests(model) == before
    assert not rosa.Resampler(model, None, config).after_epoch(1, 9)


@pytest.mark.parametrize("number", [-1, 0, "x", 1.5, True, None])
def test_what_is_no_number_of_a_subspace_is_refused(number: Any) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=r"number=.* must be a whole number, at least 1"):
        rosa.resample(model, number)
    assert digests(model) == before


def test_a_merged_model_is_not_resampled() -> None:
    model = rosa.merge(adapt("llama", rosa.RosaConfig(rank=2)))
    before = digests(model)
    with pytest.raises(RuntimeError, match="unmerge"):
        rosa.resample(model, 1)
    assert digests(model) == before


def wide_model(layers: int = 6, m: int = 256, n: int = 512) -> nn.Module:
    """Layers so large that products and factorisations use several threads if they may."""
    torch.manual_seed(3)
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(m, n) if i % 2 else nn.Linear(n, m) for i in range(layers))
    return model


def resampled(threads: int, basis: Any = "singular", **changes: int) -> dict[str, str]:
    """The bits of a model after injection and two resamples with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = rosa.inject(wide_model(**changes), rosa.RosaConfig(rank=0.1, basis=basis))
        for number in (1, 2):
            rosa.resample(model, number)
        assert torch.get_num_threads() == threads
        return digests(model)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("basis", ["singular", "random"])
def test_a_resample_repeats_to_the_bit_whatever_the_number_of_threads(basis: str) -> None:
    reference = resampled(1, basis)
    assert reference == resampled(1, basis) == resampled(2, basis) == resampled(3, basis)
    assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == torch.get_num_threads()


def test_batches_give_the_same_as_layers_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for GPUs, here on the CPU, whose solver factorises the matrices of a batch one after another."""
    reference, sizes = resampled(2), []

    def counted(weights: list[torch.Tensor]) -> torch.Tensor:
        sizes.append(len(weights))
        return short_side_vectors(weights)

    monkeypatch.setattr(drawing, "IN_THREADS", ())
    monkeypatch.setattr(drawing, "BATCH_NUMBERS", 4 * 256**2)
    monkeypatch.setattr(drawing, "short_side_vectors", counted)
    assert resampled(1) == reference
    assert sizes == [4, 2] * 3


def test_layers_at_work_and_the_memory_they_take_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, given, at_work, most = 0, 0, 0, 0
    lock = threading.Lock()

    def items() -> Any:
        nonlocal taken
        for item in range(20):
            taken += 1
            assert taken - given <= 4  # three are computed and one waits
            yield item

    def work(item: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.01 * (item % 3))
        with lock:
            at_work -= 1
        return item * item

    for item, result in in_order(work, items(), 3):
        assert (item, result) == (given, given**2)
        given += 1
    assert given == 20 and 1 < most <= 3

    model = rosa.inject(wide_model(2), rosa.RosaConfig(rank=4))
    layers = list(rosa.adapter_layers(model).values())
    one = 256 * 512 + 5 * 256**2  # the weight and Gram-sized arrays, in float64 numbers
    for room, workers in ((one // 2, 1), (2 * one, 2), (100 * one, 3)):
        monkeypatch.setattr(drawing, "CPU_NUMBERS", room)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert drawing._workers(layers) == workers


MEMORY = """
import resource, torch, rosa
from torch import nn
torch.set_num_threads(2)
peaks = []
for count in (4, 24):
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(1024, 256) for _ in range(count))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rosa.inject(model, rosa.RosaConfig(rank=4))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(*peaks)
"""


def test_memory_does_not_grow_with_the_number_of_layers() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True)
    growth = int(done.stdout.split()[-1])  # KiB that 24 layers need beyond the peak of 4
    one = 8 * (1024 * 256 + 5 * 256**2) / 1024  # one layer's working set: 24 at a time would take 108 MiB
    assert growth < 4 * one


def test_a_resample_that_fails_leaves_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=4), torch.float64)
    train_steps(model, make_optimizer(model))
    before, sample, threads = logits(model), RosaLayer.sample, torch.get_num_threads()

    def fail_late(layer: RosaLayer, number: int, vectors: torch.Tensor) -> Any:
        if layer.name.startswith("transformer.h.1"):
            raise MemoryError
        return sample(layer, number, vectors)

    monkeypatch.setattr(RosaLayer, "sample", fail_late)
    with pytest.raises(MemoryError):
        rosa.resample(model, 1)
    torch.testing.assert_close(logits(model), before, atol=1e-10, rtol=0)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("settings", "due_epochs", "due_steps"),
    [
        (dict(), [1, 2, 3, 4], []),
        (dict(level="epoch", every=2), [2, 4], []),
        (dict(level="epoch", every=5), [], []),  # due after the last epoch only
        (dict(level="step", every=3), [], [3, 6, 9]),
        (dict(level="step", every=4), [], [4, 8]),  # not after the last step, 12
        (dict(level="never"), [], []),
    ],
)
def test_when_a_resample_is_due(settings: dict[str, Any], due_epochs: list[int], due_steps: list[int]) -> None:
    config = rosa.RosaConfig(rank=2, target_modules=["c_fc"], **settings)
    model = adapt("gpt2", config)
    before = digests(model)
    resampler = rosa.Resampler(model, None, config)
    assert [step for step in range(1, 13) if resampler.after_step(step, 12)] == due_steps
    assert [epoch for epoch in range(1, 6) if resampler.after_epoch(epoch, 5)] == due_epochs
    assert resampler.number == len(due_epochs) + len(due_steps)
    assert (digests(model) == before) == (resampler.number == 0)
