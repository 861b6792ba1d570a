"""How cost grows: over 1, 4 and 16 times the data, the shapes of gpt2, -medium and -large, and ranks of gpt2."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RANK, Settings, median
from benchmarks.row import ROOT, SHAPES, Memory, Row, run

SAMPLES = 256  # of the smallest run; the others have 4 and 16 times as many
TIMES = (1, 4, 16)
RANKS = (0.025, 0.1, 0.4)  # ratios


def measure(settings: Settings) -> dict[str, Any]:
    """Rows and, for each cost, the exponent of its growth: the slope of log cost over log size."""
    count = 2 if settings.quick else 3
    data = [_in_own_process(SAMPLES * times, settings) for times in TIMES[:count]]
    batch, length = (8, 512) if settings.device.type == "cuda" else (2, 128)
    row = Row("rosa", batch, length, device=settings.device.type, rank=RANK)
    shapes = [_train({"shape": shape}, dataclasses.replace(row, shape=shape)) for shape in list(SHAPES)[:count]]
    ranks = [_train({"rank": rank}, dataclasses.replace(row, rank=rank)) for rank in RANKS[:count]]
    common = {"batch": f"{batch}x{length}", "method": "rosa"}
    costs = ("step_seconds", "factorise_seconds", "peak_mib")
    return {
        "data": {
            "model": "tiny",
            "method": "rosa",
            "rows": data,
            "exponents": _exponents(data, "samples", ("encode_seconds", "train_seconds", "peak_mib")),
        },
        "shapes": {**common, "rank": RANK, "rows": shapes, "exponents": _exponents(shapes, "parameters", costs)},
        "ranks": {**common, "shape": row.shape, "rows": ranks, "exponents": _exponents(ranks, "rank", costs)},
    }


def _train(entry: dict[str, Any], row: Row) -> dict[str, Any]:
    """``entry`` with the costs of ``row``, or with its error."""
    found = run(row)
    if "error" in found:
        return entry | {"error": found["error"]}
    return entry | {
        "parameters": found["parameters"],
        "step_seconds": median(found["seconds"]),
        "factorise_seconds": found["setup_seconds"],
        "peak_mib": found["peak_mib"],
    }


def _exponents(rows: list[dict[str, Any]], size: str, costs: tuple[str, ...]) -> dict[str, float]:
    complete = [row for row in rows if "error" not in row]
    return {cost: round(exponent([(row[size], row[cost]) for row in complete]), 3) for cost in costs}


def exponent(points: list[tuple[float, float]]) -> float:
    """The least-squares slope of log y over log x: 1 is proportional growth, 0 none."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    middle, level = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - middle) ** 2 for x in xs)
    return sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / spread


def _in_own_process(samples: int, settings: Settings) -> dict[str, Any]:
    request = {"samples": samples, "data": settings.data, "device": settings.device.type}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", json.dumps(request)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def train_once(samples: int, data: str | None, device: str) -> dict[str, Any]:
    """Tokenise ``samples`` pairs (repeated where there are fewer) and train the bundled model on them once."""
    import torch

    import rosa
    from utils.data import get_source
    from utils.models.loading import load_model, load_tokenizer
    from utils.models.token_loss import TokenLoss
    from utils.tokens.batches import Collator, epoch_batches
    from utils.tokens.encoding import encode

    tokenizer, model = load_tokenizer("tiny"), load_model("tiny", None).to(device)
    rosa.inject(model, rosa.RosaConfig(rank=RANK), keep_base=False).train()
    token_loss = TokenLoss(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    source = get_source("e2e" if data else "e2e_sample")
    examples = list(source.load("train", Path(data) if data else None, None))
    chosen = [examples[i % len(examples)] for i in range(samples)]

    collate = Collator(tokenizer.pad_token_id, "target", torch.device(device))
    memory = Memory(device)
    memory.restart_peak()
    start = time.perf_counter()
    encoded = encode(chosen, tokenizer, 512)
    encode_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for indices in epoch_batches([len(sample.ids) for sample in encoded.samples], 32, 50, 0, 0):
        batch = collate(encoded, indices)
        total, losses = token_loss(batch.input_ids, batch.positions, batch.labels)
        (total / len(losses)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    return {
        "samples": samples,
        "encode_seconds": round(encode_seconds, 4),
        "train_seconds": round(time.perf_counter() - start, 4),
        "peak_mib": round(memory.peak(), 1),
    }


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table; the last row of each part holds the exponents."""
    lines = [["size", "time (s)", "factorise / tokenise (s)", "peak (MiB)"]]
    for part, size, columns in (
        ("data", "samples", ("train_seconds", "encode_seconds", "peak_mib")),
        ("shapes", "shape", ("step_seconds", "factorise_seconds", "peak_mib")),
        ("ranks", "rank", ("step_seconds", "factorise_seconds", "peak_mib")),
    ):
        if part not in figures:  # an earlier version's record
            continue
        for row in figures[part]["rows"]:
            cells = [row["error"], "–", "–"] if "error" in row else [f"{row[column]:,.4g}" for column in columns]
            label = {"samples": f"{row[size]} samples", "rank": f"gpt2, rank ratio {row[size]}"}.get(size, row[size])
            lines.append([label, *cells])
        powers = figures[part]["exponents"]
        lines.append([f"exponent over {part}", *(f"{powers[column]:.2f}" for column in columns)])
    return lines


if __name__ == "__main__":
    print(json.dumps(train_once(**json.loads(sys.argv[1]))))
