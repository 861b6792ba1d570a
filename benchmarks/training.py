"""Training speed on E2E: this project against the plain way, LoRA and ROSA, equal work and equal dropout.

The plain way is what most fine-tuning scripts do: random batches padded to their longest sample, an attention
mask, eager attention, logits over the whole vocabulary at every position, and -100 where there is no loss.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rosa
from benchmarks.common import RANK, Settings, e2e_samples, gpt2_small, median
from utils.batching import Batch, Encoded, collate, epoch_batches
from utils.losses import TokenLoss

TOLERANCE = 1e-4  # nats; losses of both ways on the same batch, dropout 0


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


def project_loss(token_loss: TokenLoss, batch: Batch, device: torch.device) -> Tensor:
    """Mean loss on target tokens, as the trainer computes it."""
    batch = batch.to(device)
    return token_loss(batch.input_ids, batch.positions, batch.labels).mean()


def representative(batches: list[list[int]], lengths: list[int], count: int) -> list[list[int]]:
    """``count`` full batches evenly spaced from the shortest to the longest, so that few stand for an epoch."""
    full = [batch for batch in batches if len(batch) == len(batches[0])]
    full.sort(key=lambda batch: max(lengths[i] for i in batch))
    step = len(full) / count
    return [full[int((k + 0.5) * step)] for k in range(count)]


def measure(settings: Settings) -> dict[str, Any]:
    """Samples per second of each method and way, and the largest difference of their losses on equal batches."""
    encoded, tokenizer = e2e_samples(settings)
    lengths = [len(sample.ids) for sample in encoded.samples]
    on_gpu = settings.device.type == "cuda"
    size, count = (128, 20) if on_gpu else (16, 6)
    if settings.quick:
        count = max(count // 2, 2)
    ways = {
        "plain": representative(epoch_batches(lengths, size, 0, 0, 0), lengths, count),
        "project": representative(epoch_batches(lengths, size, 50, 0, 0), lengths, count),
    }
    padded = {
        way: sum(len(b) * max(lengths[i] for i in b) for b in batches) / sum(lengths[i] for b in batches for i in b)
        for way, batches in ways.items()
    }
    rows = {}
    for method, config in (("lora", rosa.LoraConfig(rank=RANK)), ("rosa", rosa.RosaConfig(rank=RANK))):
        seconds = {}
        for way, batches in ways.items():
            model = rosa.inject(gpt2_small("eager" if way == "plain" else "sdpa"), config).to(settings.device).train()
            seconds[way] = _time_epoch(settings, way, model, encoded, batches, tokenizer.pad_token_id)
        difference = _loss_difference(settings, config, encoded, ways["plain"][0], tokenizer.pad_token_id)
        rows[method] = {
            "seconds_per_step": {way: [round(s, 4) for s in values] for way, values in seconds.items()},
            "samples_per_second": {way: round(size * count / sum(values), 3) for way, values in seconds.items()},
            "speedup": round(sum(seconds["plain"]) / sum(seconds["project"]), 3),
            "loss_difference": difference,
            "losses_equal": difference < TOLERANCE,
        }
    return {
        "batch_size": size, "steps": count, "rank": RANK, "loss_on": "target", "dropout": 0.1,
        "tokens_per_sample": median([float(length) for length in lengths]),
        "computed_per_real_token": {way: round(value, 3) for way, value in padded.items()}, "methods": rows,
    }  # fmt: skip


def _time_epoch(
    settings: Settings, way: str, model: Any, encoded: Encoded, batches: list[list[int]], pad_id: int
) -> list[float]:
    """Seconds of each step: forward, backward, AdamW."""
    fused = way == "project"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=fused)
    token_loss = TokenLoss(model)
    seconds = []
    for number, indices in enumerate([batches[len(batches) // 2], *batches]):  # the first is warm-up
        settings.synchronise()
        start = time.perf_counter()
        if way == "plain":
            loss = plain_loss(model, encoded, indices, pad_id, settings.device)
        else:
            loss = project_loss(token_loss, collate(encoded, indices, "target", pad_id), settings.device)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        settings.synchronise()
        if number:
            seconds.append(time.perf_counter() - start)
    return seconds


@torch.no_grad()
def _loss_difference(settings: Settings, config: Any, encoded: Encoded, indices: list[int], pad_id: int) -> float:
    """|plain - project| of the mean loss of one batch, dropout 0."""
    losses = []
    for way in ("plain", "project"):
        model = gpt2_small("eager" if way == "plain" else "sdpa", dropout=0.0)
        model = rosa.inject(model, config).to(settings.device).train()
        if way == "plain":
            losses.append(float(plain_loss(model, encoded, indices, pad_id, settings.device)))
        else:
            batch = collate(encoded, indices, "target", pad_id)
            losses.append(float(project_loss(TokenLoss(model), batch, settings.device)))
    return abs(losses[0] - losses[1])
