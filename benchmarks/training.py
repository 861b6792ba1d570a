"""Training speed on E2E: this project against the plain way and PEFT, side by side on equal batches and dropout.

The plain way is what the first public code and most fine-tuning scripts do: float32, random batches padded to their
longest sample, an attention mask, eager attention, logits over the whole vocabulary at every position, and -100
where there is no loss. PEFT's LoRA takes the same batches at its best: SDPA, a fused optimizer, on CUDA bfloat16
and compiled, on a CPU compiled too where a C++ compiler is.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rosa
from benchmarks.common import RANK, Settings, e2e_samples, gpt2_small, median
from utils.models.fast_modules import use_faster_modules
from utils.models.token_loss import TokenLoss
from utils.tokens.batches import Collator, epoch_batches
from utils.tokens.encoding import Encoded

LOSS_TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}  # nats; float32 on both sides, float32 against bfloat16
Loss = Callable[[list[int]], Tensor]


@dataclass
class Way:
    """One way to train: ``loss`` of a batch's samples with a graph, and the optimizer of what it trains.

    Attributes:
        batches: which of the two kinds of batches it takes: random or sorted.
    """

    loss: Loss
    optimizer: torch.optim.Optimizer
    batches: str

    def step(self, indices: list[int]) -> Tensor:
        """Forward, backward and update; the loss, still on the device."""
        loss = self.loss(indices)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def plain_loss(model: Any, encoded: Encoded, indices: list[int], pad_id: int, device: torch.device) -> Tensor:
    """Mean loss on target tokens, the plain way."""
    samples = [encoded.samples[i] for i in indices]
    width = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), width), pad_id)
    labels = torch.full((len(samples), width), -100)
    mask = torch.zeros(len(samples), width, dtype=torch.long)
    for row, sample in enumerate(samples):
        size = len(sample.ids)
        ids[row, :size] = torch.tensor(sample.ids)
        labels[row, sample.prompt_length : size] = ids[row, sample.prompt_length : size]
        mask[row, :size] = 1
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(device), ignore_index=-100)


def plain_products(model: Any) -> Any:
    """``model``, its adapter layers computing x W + b + (x A) B operation by operation, as the first code does."""
    for layer in rosa.adapter_layers(model).values():
        layer.forward = lambda x, layer=layer: layer.base(x) + (x @ layer.A) @ layer.B
    return model


class Ways:
    """Makes each way with the same base weights and dropout."""

    def __init__(self, settings: Settings, encoded: Encoded, pad_id: int, dropout: float) -> None:
        self.device, self.encoded, self.pad_id, self.dropout = settings.device, encoded, pad_id, dropout
        self.cuda = settings.device.type == "cuda"

    def build(self, name: str) -> Way:
        """The way of that name: plain, plain rosa, peft, full, lora or rosa."""
        if name.startswith("plain"):
            return self._unsorted(plain_products(self._adapted("eager", name == "plain rosa")), fused=False)
        if name == "peft":
            return self._unsorted(self._peft(), fused=True)
        return self._project(name)

    def _adapted(self, attention: str, is_rosa: bool) -> Any:
        config = rosa.RosaConfig(rank=RANK, bias="none") if is_rosa else rosa.LoraConfig(rank=RANK)
        return rosa.inject(gpt2_small(attention, self.dropout), config)

    def _peft(self) -> Any:
        import peft

        model = gpt2_small("sdpa", self.dropout)
        rank = int(RANK * model.config.n_embd)
        names = ["c_attn", "c_proj", "c_fc"]
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, fan_in_fan_out=True)
        )
        return torch.compile(model, dynamic=True) if self.cuda else model

    def _unsorted(self, model: Any, fused: bool) -> Way:
        model.to(self.device).train()

        def loss(indices: list[int]) -> Tensor:
            with self._autocast(fused):
                return plain_loss(model, self.encoded, indices, self.pad_id, self.device)

        return Way(loss, self._adamw(model, fused), "random")

    def _project(self, name: str) -> Way:
        """As the trainer does it."""
        model = gpt2_small("sdpa", self.dropout) if name == "full" else self._adapted("sdpa", name == "rosa")
        use_faster_modules(model)
        token_loss = TokenLoss(model.to(self.device).train())
        if self.cuda:
            token_loss.compile()

        collate = Collator(self.pad_id, "target", self.device)

        def loss(indices: list[int]) -> Tensor:
            batch = collate(self.encoded, indices)
            with self._autocast(True):
                total, losses = token_loss(batch.input_ids, batch.positions, batch.labels)
            return total / len(losses)

        return Way(loss, self._adamw(model, fused=True), "sorted")

    def _autocast(self, wanted: bool) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if wanted and self.cuda else contextlib.nullcontext()

    def _adamw(self, model: Any, fused: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=fused)


def representative(batches: list[list[int]], lengths: list[int], count: int) -> list[list[int]]:
    """``count`` full batches evenly spaced from the shortest to the longest, so that few stand for an epoch."""
    full = [batch for batch in batches if len(batch) == len(batches[0])]
    full.sort(key=lambda batch: max(lengths[i] for i in batch))
    step = len(full) / count
    return [full[int((k + 0.5) * step)] for k in range(count)]


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds and samples per second of each way, and how far the ways' losses differ without dropout.

    Each round has all ways after one another; a batch's time is the median over the rounds.
    """
    encoded, tokenizer = e2e_samples(settings)
    lengths = [len(sample.ids) for sample in encoded.samples]
    size, count, rounds = (128, 20, 2) if settings.device.type == "cuda" else (64, 2, 2)
    names = ["plain", "plain rosa", "peft", "full", "lora", "rosa"]
    if settings.quick:
        size, count, rounds = min(size, 16), 1, 1
    batches = {
        "random": representative(epoch_batches(lengths, size, 0, 0, 0), lengths, count),
        "sorted": representative(epoch_batches(lengths, size, 50, 0, 0), lengths, count),
    }
    padded = {
        kind: sum(len(b) * max(lengths[i] for i in b) for b in chosen) / sum(lengths[i] for b in chosen for i in b)
        for kind, chosen in batches.items()
    }
    maker = Ways(settings, encoded, tokenizer.pad_token_id, dropout=0.1)
    seconds = _take_turns(settings, maker, names, batches, rounds)
    totals = {name: sum(median(times) for times in rows) for name, rows in seconds.items()}
    differences = _loss_differences(settings, encoded, tokenizer.pad_token_id, batches["random"][0][:16])
    return {
        "batch_size": size, "batches": count, "rounds": rounds, "rank": RANK, "loss_on": "target", "dropout": 0.1,
        "tokens_per_sample": median([float(length) for length in lengths]),
        "computed_per_real_token": {kind: round(value, 3) for kind, value in padded.items()},
        "seconds": seconds,
        "samples_per_second": {name: round(size * count / total, 2) for name, total in totals.items()},
        "speedup": {name: round(totals["plain"] / total, 3) for name, total in totals.items()},
        "loss_differences": differences, "tolerance": LOSS_TOLERANCE[settings.device.type],
        "losses_equal": max(differences.values()) < LOSS_TOLERANCE[settings.device.type],
    }  # fmt: skip


def _take_turns(
    settings: Settings, maker: Ways, names: list[str], batches: dict[str, list[list[int]]], rounds: int
) -> dict[str, list[list[float]]]:
    """Seconds of each way, batch and round. The order is turned round each time, and one model exists at a time: of
    several at once, those that wait can lose their place in caches and in memory."""
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in batches["random"]] for name in names}
    for round_ in range(rounds):
        for name in names if round_ % 2 == 0 else names[::-1]:
            way = maker.build(name)
            own = batches[way.batches]
            for indices in own[-2:]:  # warm-up, and compilation
                way.step(indices if maker.cuda else indices[:8])
            for number, indices in enumerate(own):
                settings.synchronise()
                start = time.perf_counter()
                way.step(indices)
                settings.synchronise()
                seconds[name][number].append(round(time.perf_counter() - start, 4))
            del way
            gc.collect()
    return seconds


def _loss_differences(settings: Settings, encoded: Encoded, pad_id: int, indices: list[int]) -> dict[str, float]:
    """The largest |plain - way| of the mean loss of a batch before and after an update on it, dropout 0.

    PEFT draws other numbers for A, so that it is compared before the update only, where B is zero.
    """
    maker = Ways(settings, encoded, pad_id, dropout=0.0)
    found, traces = {}, {}
    for name in ("plain", "plain rosa", "peft", "lora", "rosa"):
        way = maker.build(name)
        traces[name] = torch.stack([way.step(indices), way.loss(indices).detach()]).tolist()
        if not name.startswith("plain"):
            plain = traces["plain rosa" if name == "rosa" else "plain"]
            steps = slice(0, 1 if name == "peft" else 2)
            pairs = zip(plain[steps], traces[name][steps], strict=True)
            found[name] = round(max(abs(a - b) for a, b in pairs), 8)
    return found


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table."""
    names = {
        "plain": "the plain way, LoRA",
        "plain rosa": "the plain way, ROSA",
        "peft": "PEFT's LoRA",
        "full": "full fine-tuning, this project",
        "lora": "LoRA, this project",
        "rosa": "ROSA, this project",
    }
    rows = [
        [label, f"{figures['samples_per_second'][name]:,.4g}", f"{figures['speedup'][name]:.2f}"]
        for name, label in names.items()
        if name in figures["speedup"]
    ]
    return [["training on E2E", "samples/s", "of the plain way"], *rows]
