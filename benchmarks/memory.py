"""Peak memory of training GPT-2 small by method, batch and gradient checkpointing, each row in a process of its own."""

from __future__ import annotations

from typing import Any

from benchmarks.common import RANK, Settings, median
from benchmarks.row import METHODS, Row, run

BATCHES = {"cuda": ((8, 512), (128, 64)), "cpu": ((1, 512), (8, 64))}  # samples, tokens each


def measure(settings: Settings) -> dict[str, Any]:
    """MiB of each row, and its ratio to the plain way with the same batch. ``--quick``: the smaller batch alone."""
    device = settings.device.type
    rows = []
    for batch, length in BATCHES[device][1:] if settings.quick else BATCHES[device]:
        plain = None
        for method in METHODS:
            for checkpointing in (False,) if method == "plain" else (False, True):
                row = Row(method, batch, length, checkpointing=checkpointing, device=device, rank=RANK)
                found = run(row)
                entry = {"method": method, "batch": f"{batch}x{length}", "checkpointing": checkpointing}
                if "error" not in found:
                    plain = found["peak_mib"] if plain is None else plain
                    entry |= {
                        "peak_mib": found["peak_mib"],
                        "ratio": round(found["peak_mib"] / plain, 3),
                        "seconds_per_step": median(found["seconds"]),
                        "trainable": found["trainable"],
                    }
                rows.append(entry | {key: found[key] for key in ("error",) if key in found})
    return {"shape": "gpt2", "rank": RANK, "loss_on": "all", "rows": rows}


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table."""
    lines = [["method", "batch", "checkpointing", "peak (MiB)", "of plain", "s/step"]]
    for row in figures["rows"]:
        if "error" in row:
            numbers = [row["error"], "–", "–"]
        else:
            numbers = [f"{row['peak_mib']:,.0f}", f"{row['ratio']:.2f}", f"{row['seconds_per_step']:.3g}"]
        lines.append([row["method"], row["batch"], "yes" if row["checkpointing"] else "no", *numbers])
    return lines
