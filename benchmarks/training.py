"""Training speed on E2E: this project, PEFT and the plain way, each in processes of its own, in turn.

All start at the same weights and train on the same data with the same dropout. ``benchmarks.ways`` says what each way
does, and how another command takes part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RANK, Settings, cell, e2e_samples, gpt2_small, spread
from benchmarks.turns import Trainer, Turns, take_turns
from benchmarks.ways import MATMUL, Batch, Task
from utils.tokens.batches import epoch_batches
from utils.tokens.encoding import Encoded

LABELS = {
    "plain fp32": "the plain way, LoRA",
    "documented fp32": "PEFT's LoRA, as documented",
    "expert fp32": "PEFT's LoRA, by an expert",
    "full fp32": "full fine-tuning, this project",
    "lora fp32": "LoRA, this project",
    "rosa fp32": "ROSA, this project",
    "expert bf16": "PEFT's LoRA, by an expert",
    "full bf16": "full fine-tuning, this project",
    "lora bf16": "LoRA, this project",
    "rosa bf16": "ROSA, this project",
}
PEAKS = {"fp32": "matmul fp32", "bf16": "matmul bf16"}
PLAIN_ROSA = "plain-rosa fp32"  # for its losses only
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # nats, of the plain way's loss in float32
DROPOUT = 0.1


def measure(settings: Settings) -> dict[str, Any]:
    """Speed, memory and losses of each way; the fields are those of ``compare``."""
    encoded, tokenizer = e2e_samples(settings)
    size, rounds = (min(settings.batch, 8), 1) if settings.quick else (settings.batch, 5)
    count = 20 if settings.device.type == "cuda" else 1
    with tempfile.TemporaryDirectory() as folder:
        gpt2_small("sdpa").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task = Task("", folder, settings.device.type, RANK, DROPOUT, *_batches(settings, encoded, size, count))
        return {
            "batch_size": size, "batches": count, "rounds": rounds, "rank": RANK, "loss_on": "target",
            "dropout": DROPOUT, **compare(task, rounds, settings.command),
        }  # fmt: skip


def _batches(settings: Settings, encoded: Encoded, size: int, count: int) -> tuple[dict[str, list[Batch]], Batch]:
    """Of each kind ``count`` batches and one to warm up with, and one for the comparison of losses."""
    lengths = [len(sample.ids) for sample in encoded.samples]
    samples = [(list(sample.ids), sample.prompt_length) for sample in encoded.samples]
    batches: dict[str, list[Batch]] = {}
    for kind, window in (("random", 0), ("sorted", 50)):
        chosen = representative(epoch_batches(lengths, size, window, 0, 0), lengths, count)
        batches[kind] = [[samples[i] for i in batch] for batch in chosen]
        # a whole one: kernels are made for its shape; a part suffices where a step takes long and is not compiled
        part = max(1, size // 8) if kind == "random" and settings.device.type == "cpu" else None
        batches[kind].append(batches[kind][0][:part])
    return batches, batches["random"][0][:4]


def representative(batches: list[list[int]], lengths: list[int], count: int) -> list[list[int]]:
    """``count`` full batches evenly spaced from the fewest tokens to the most, so that few stand for an epoch."""
    full = [batch for batch in batches if len(batch) == len(batches[0])]
    full.sort(key=lambda batch: sum(lengths[i] for i in batch))
    step = len(full) / count
    return [full[int((k + 0.5) * step)] for k in range(count)]


def compare(task: Task, rounds: int, command: str | None = None) -> dict[str, Any]:
    """Let all ways train in turn, and ``command`` too.

    Returns:
        ``peak``: by precision, GFLOP/s of the matrix product. ``rows``: by way, see ``_row``, with ``of_plain`` and
        ``of_expert`` (the one of its precision), the ratios of samples per second within a round.
        ``loss_differences``: by way, the largest difference in nats to the plain way's losses.
    """
    own: str | list[str] = [sys.executable, "-m", "benchmarks.ways"]
    commands = dict.fromkeys((*PEAKS.values(), *LABELS), own) | ({command: command} if command else {})
    found = take_turns(commands, task, len(task.batches["random"]) - 1, rounds)
    with contextlib.closing(Trainer(own, dataclasses.replace(task, way=PLAIN_ROSA))) as plain_rosa:
        found[PLAIN_ROSA] = Turns(plain_rosa.ready, [])

    peak = {
        precision: [found[name].ready["flop"] * len(times) / sum(times) / 1e9 for times in found[name].seconds]
        for precision, name in PEAKS.items()
    }
    weights = (Path(task.model) / "model.safetensors").stat().st_size / 2**20
    rows, rates, ready = {}, {}, {}
    for name, turns in found.items():
        ready[name] = {"method": "lora", "precision": "fp32", **turns.ready}
        if name in PEAKS.values() or name == PLAIN_ROSA:
            continue
        row, rates[name] = _row(task, ready[name], turns.seconds, peak[ready[name]["precision"]])
        memory = None if turns.peak_mib is None else round(turns.peak_mib - weights, 1)
        rows[name] = {"label": LABELS.get(name, f"`{name}`"), **row, "peak_mib": memory}
    for name, row in rows.items():
        for key, other in (("of_plain", "plain fp32"), ("of_expert", f"expert {row['precision']}")):
            row[key] = spread([mine / its for mine, its in zip(rates[name], rates[other], strict=True)])
    differences = {name: _difference(ready, name) for name in rows if ready[name].get("losses")}
    return {
        "product": MATMUL, "peak": {precision: spread(values) for precision, values in peak.items()}, "rows": rows,
        "loss_differences": differences, "tolerance": TOLERANCE,
        "losses_equal": all(value < TOLERANCE[rows[name]["precision"]] for name, value in differences.items()),
    }  # fmt: skip


def _row(
    task: Task, ready: dict[str, Any], seconds: list[list[float]], peak: list[float]
) -> tuple[dict[str, Any], list[float]]:
    """What the seconds of a way mean, by round and batch; and its samples per second in each round.

    Args:
        peak: GFLOP/s of the machine in each round, in the way's precision.

    Returns:
        Medians and ranges over the rounds of ``samples_per_second``, of ``tokens_per_second`` (of real tokens, padding
        left out) and of ``share_of_peak`` (of the useful operations, see ``flop``).
    """
    batches = task.batches[ready["batches"]][:-1]
    samples = sum(len(batch) for batch in batches)
    tokens = sum(len(ids) for batch in batches for ids, _ in batch)
    targets = tokens - sum(prompt for batch in batches for _, prompt in batch)
    computed = sum(len(batch) * max(len(ids) for ids, _ in batch) for batch in batches)
    work = len(batches) * ready["flop"] if ready.get("flop") else flop(task, ready["method"], tokens, targets)
    spent = [sum(times) for times in seconds]
    rates = [samples / value for value in spent]
    return {
        "method": ready["method"], "precision": ready["precision"], "seconds": seconds,
        "tokens_per_sample": round(tokens / samples, 2), "computed_per_real_token": round(computed / tokens, 3),
        "samples_per_second": spread(rates),
        "tokens_per_second": spread([tokens / value for value in spent]),
        "share_of_peak": spread([work / value / 1e9 / top for value, top in zip(spent, peak, strict=True)]),
    }, rates  # fmt: skip


def flop(task: Task, method: str, tokens: int, targets: int) -> float:
    """Floating-point operations that training on so many tokens needs, of which ``targets`` carry loss.

    Per weight and token two for the output, two for the gradient of the input, and two for that of a trained weight.
    Counted are the linear layers of GPT-2's blocks, the pairs A, B, and the head at targets; not attention's own
    products, which are about a hundredth at E2E's lengths.
    """
    shape = json.loads((Path(task.model) / "config.json").read_text(encoding="utf-8"))
    width, blocks = shape["n_embd"], shape["n_layer"]
    layers, head = 12 * blocks * width**2, shape["vocab_size"] * width
    if method == "full":
        return 6.0 * (layers * tokens + head * targets)
    pairs = 16 * blocks * width * int(task.rank * width)
    return (4.0 * layers + 6.0 * pairs) * tokens + 4.0 * head * targets


def _difference(ready: dict[str, Any], name: str) -> float:
    """The largest difference in nats of the losses before and after an update, dropout 0, from those of the plain way.

    Full fine-tuning makes another update, so that only its first loss is compared.
    """
    method, losses = ready[name]["method"], ready[name]["losses"]
    plain = ready[PLAIN_ROSA if method == "rosa" else "plain fp32"]["losses"]
    pairs = list(zip(plain, losses, strict=True))[: 1 if method == "full" else 2]
    return round(max(abs(one - two) for one, two in pairs), 8)


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table: medians, and ranges in brackets; what was not measured is a dash."""
    columns = {
        "samples_per_second": ",.2f", "tokens_per_second": ",.0f", "share_of_peak": ".0%", "peak_mib": ",.0f",
        "of_plain": ".2f", "of_expert": ".2f",
    }  # fmt: skip
    header = ["samples/s", "tokens/s", "of the peak", "memory (MiB)", "of the plain way", "of the expert's PEFT"]
    lines = [[f"training on E2E, batch {figures['batch_size']}", "precision", *header]]
    for row in figures["rows"].values():
        cells = [cell(row.get(key), digits) for key, digits in columns.items()]
        lines.append([row["label"], row["precision"], *cells])
    size = "×".join(str(number) for number in figures.get("product", ()))
    for precision, values in figures.get("peak", {}).items():
        cells = ["–"] * len(header)
        cells[2] = f"{cell(values, ',.0f')} GFLOP/s"
        lines.append([f"matrix product, {size}", precision, *cells])
    return lines
