"""What training costs by calculation: FLOP, memory and bytes sent of GPT-2 XL and a Llama of 1B parameters.

``python -m benchmarks.cost_model`` writes the tables of docs/cost.md. That page explains the formulas and assumptions.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rosa
from benchmarks.common import cell
from benchmarks.report import markdown
from benchmarks.row import ROOT
from rosa.injection import adapter_layers
from rosa.layers import layer_shape
from rosa.targets import find_targets
from utils.io.files import write_text
from utils.models.compilation import blocks
from utils.text import replace_part

PAGE = ROOT / "docs" / "cost.md"

SAMPLES, BATCH, LIMIT = 1_000_000, 512, 8192  # of an epoch, of a step, and tokens of a forward pass and GPU
TOKENS, LABELS = 61.7, 24.7  # per sample of E2E: with padding in sorted batches; those of the target
RANK = 0.05  # ratio, the default
GPUS = {1: math.inf, 8: 450e9, 64: 50e9}  # their number: bytes per second that each sends, NVLink 4 or 400 Gbit/s
PEAK, USED = 989e12, 0.35  # FLOP per second of an H100 SXM in bfloat16; the share that training reaches
GRAM_SECONDS = 0.42 / (48 * 768**3)  # per q³: an H100, 48 layers of GPT-2 small, not timed by this repository
CHUNK = 2 * 2**27  # bytes of the head's logits and their softmax, a part of the positions at a time


@dataclass(frozen=True)
class Layer:
    """A linear layer of m inputs and n outputs, with a bias or not, and the rank of its pair: 0 if it has none."""

    m: int
    n: int
    bias: bool
    rank: int = 0

    @property
    def pair(self) -> int:
        """Parameters of A and B."""
        return self.rank * (self.m + self.n)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, and shapes, that the formulas need of a model."""

    parameters: int
    trained: int
    in_blocks: int
    blocks: int
    width: int
    vocabulary: int
    layers: tuple[Layer, ...]  # those of the blocks

    @property
    def outer(self) -> int:
        """Parameters outside of the blocks: embeddings, last norm, head."""
        return self.parameters - self.in_blocks


def sizes_of(model: Any) -> Sizes:
    """The sizes of a model, adapted or not, which may lie on the meta device."""
    layers = []
    for layer in (adapter_layers(model) or find_targets(model, None)).values():
        bias = getattr(layer, "base", layer).bias is not None
        layers.append(Layer(*layer_shape(getattr(layer, "base", layer)), bias, getattr(layer, "rank", 0)))
    return Sizes(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        in_blocks=sum(p.numel() for block in blocks(model) for p in block.parameters()),
        blocks=len(blocks(model)),
        width=model.config.hidden_size,
        vocabulary=model.config.vocab_size,
        layers=tuple(layers),
    )


def flop(sizes: Sizes, tokens: float, labels: float, length: float, passes: float, sharded: bool) -> float:
    """FLOP of the forward and backward passes over ``tokens`` tokens in samples of ``length``."""
    weights = sum(layer.m * layer.n for layer in sizes.layers)
    pairs = sum(layer.pair for layer in sizes.layers)
    head = sizes.width * sizes.vocabulary
    attention = 6 * sizes.blocks * length * sizes.width * tokens
    if not pairs:
        return 6 * weights * tokens + 6 * head * labels + attention
    # W + A B is one matrix where W is cast anyway; a shard arrives cast, and the pair is multiplied apart
    sums = 0 if sharded else 2 * sum(layer.m * layer.n * layer.rank for layer in sizes.layers) * passes
    return 4 * weights * tokens + (6 if sharded else 4) * pairs * tokens + 4 * head * labels + attention + sums


def memory(sizes: Sizes, shards: int, tokens: float, saved: float) -> dict[str, float]:
    """Bytes on each GPU.

    Args:
        shards: parts that the model is split into; 1 if each GPU has the whole.
        tokens: tokens of a forward pass.
        saved: bytes that a token leaves in each block for the backward pass, per unit of width.
    """
    pairs = sum(layer.pair for layer in sizes.layers)
    cast = sizes.in_blocks if shards == 1 else 2 * sizes.in_blocks / sizes.blocks + sizes.outer
    return {
        "weights": 4 * (sizes.parameters - pairs) / shards + 2 * cast,
        "adapters": 4 * pairs / shards,
        "gradients": 4 * sizes.trained / shards,
        "Adam": 8 * sizes.trained / shards,
        "activations": saved * sizes.width * sizes.blocks * tokens + CHUNK,
    }


def sent_by_step(sizes: Sizes, gpus: int, sharded: bool, passes: int, itemsize: int) -> float:
    """Bytes that each process sends in one optimizer step of ``passes`` micro-batches: FSDP2 if ``sharded``, else DDP.

    Args:
        itemsize: bytes of a gathered number: 2 in bfloat16, 4 in float32.
    """
    ring = (gpus - 1) / gpus
    gradients = 4 * sizes.trained
    return ring * (2 * passes * itemsize * sizes.parameters + gradients if sharded else 2 * gradients)


def sent_by_resample(sizes: Sizes, gpus: int, sharded: bool) -> float:
    """Bytes that each process sends when ROSA resamples all layers."""
    numbers = sum(layer.pair for layer in sizes.layers)  # the first process sends A and B
    if sharded:  # W, A and B are gathered for a check; W, A, B and bias for the resample
        numbers += sum(2 * (layer.m * layer.n + layer.pair) + layer.n * layer.bias for layer in sizes.layers)
    return (gpus - 1) / gpus * 4 * numbers


def resample_seconds(sizes: Sizes, gpus: int, sharded: bool) -> float:
    """Seconds of a resample. Whole layers are shared out among the GPUs, sharded ones gathered one after another."""
    share = 1.0 if sharded else math.ceil(len(sizes.layers) / gpus) / len(sizes.layers)
    return share * GRAM_SECONDS * sum(min(layer.m, layer.n) ** 3 for layer in sizes.layers)


def bare_models() -> dict[str, tuple[Any, int]]:
    """By name a model without values, and the bytes per unit of width that a token leaves in a block."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    xl = GPT2Config(n_embd=1600, n_layer=48, n_head=25)
    llama = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        return {"GPT-2 XL": (GPT2LMHeadModel(xl), 34), "Llama 1B": (LlamaForCausalLM(llama), 37)}


@functools.cache
def cases() -> list[tuple[str, Sizes, int]]:
    """Each model with each method: a label, sizes, and the bytes of ``bare_models``."""
    methods = {"full": None, "LoRA": rosa.LoraConfig(rank=RANK), "ROSA": rosa.RosaConfig(rank=RANK)}
    found = []
    for label, config in methods.items():
        for name, (model, saved) in bare_models().items():
            if config is not None:
                rosa.inject(model, config, start=False, keep_base=False)
            found.append((f"{name}, {label}", sizes_of(model), saved))
    return sorted(found, key=lambda case: case[0].split(",")[0])


def time_table() -> list[list[str]]:
    """Header and rows: work, bytes and seconds of an epoch, for a whole model on each GPU and for a sharded one."""
    rows = [["model, method", "GPUs", "10¹⁸ FLOP", "computing (s)", "sent per step (GB), whole", "sharded",
             "resample (s), whole", "sharded", "sent by it (GB), whole", "sharded",
             "epoch (s), whole", "sharded"]]  # fmt: skip
    for label, sizes, _ in cases():
        for gpus, speed in GPUS.items():
            passes, steps = math.ceil(BATCH / gpus * TOKENS / LIMIT), SAMPLES / BATCH
            work, sent, factorise, resent, epoch = [], [], [], [], []
            for sharded in (False, True):
                work.append(flop(sizes, BATCH * TOKENS, BATCH * LABELS, TOKENS, passes * gpus, sharded) * steps)
                sent.append(sent_by_step(sizes, gpus, sharded, passes, 2))
                resamples = "ROSA" in label and (gpus > 1 or not sharded)
                factorise.append(resample_seconds(sizes, gpus, sharded) if resamples else 0.0)
                resent.append(sent_by_resample(sizes, gpus, sharded) if resamples else 0.0)
                seconds = max(work[-1] / (gpus * PEAK * USED), sent[-1] * steps / speed)
                epoch.append(seconds + factorise[-1] + resent[-1] / speed if gpus > 1 or not sharded else 0.0)
            numbers = [work[0] / 1e18, work[0] / (gpus * PEAK * USED), *(value / 1e9 for value in sent), *factorise]
            rows.append([label, str(gpus), *map(_digits, [*numbers, *(value / 1e9 for value in resent), *epoch])])
    return rows


def memory_table() -> list[list[str]]:
    """Header and rows: GiB on each GPU, the whole model on one and shards on eight."""
    rows: list[list[str]] = []
    for label, sizes, saved in cases():
        if "LoRA" in label:  # as ROSA, but for the trained biases
            continue
        for gpus, placed in ((1, "whole on 1"), (8, "sharded on 8")):
            parts = memory(sizes, gpus, min(LIMIT, BATCH / gpus * TOKENS), saved)
            rows = rows or [["model, method", "GPUs", *(f"{part} (GiB)" for part in parts), "sum"]]
            rows.append([label, placed, *(_digits(value / 2**30) for value in (*parts.values(), sum(parts.values())))])
    return rows


def _digits(value: float) -> str:
    """Three digits; a dash for zero."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value else "–"


def exponents(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows: the exponents of ``benchmarks.growth``."""
    rows = [["growth over", "time", "tokenising or factorising", "peak memory"]]
    for part, label in (("data", "samples"), ("shapes", "parameters, three models"), ("ranks", "rank, GPT-2 small")):
        found = figures[part]["exponents"] if part in figures else {}
        first = ("train_seconds", "encode_seconds") if part == "data" else ("step_seconds", "factorise_seconds")
        rows.append([label, *(cell(found.get(cost), ".2f") for cost in (*first, "peak_mib"))])
    return rows


def page(text: str, results: Path) -> str:
    """The page ``text`` with its tables made again, the measured one from the record in ``results``."""
    record = json.loads((results / "growth-cpu.json").read_text(encoding="utf-8"))
    tables = {"growth": exponents(record["figures"]), "time": time_table(), "memory": memory_table()}
    for name, rows in tables.items():
        text = replace_part(text, f"{name} by python -m benchmarks.cost_model", markdown(rows))
    return text


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8"), ROOT / "benchmarks" / "results"))
    print(PAGE)
