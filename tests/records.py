"""Run folders for tests of tables and figures, as training, evaluation and scoring write them; readers of tables."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

DECODING = {"num_beams": 10, "length_penalty": 0.8, "no_repeat_ngram_size": 4, "max_new_tokens": 128}
PARAMETERS = {9: 1_400_000, 0.0125: 1_400_000, 0.025: 2_900_000, 0.05: 5_700_000, 0.1: 11_300_000}


def write_run(
    folder: Path,
    *,
    method: str = "rosa",
    rank: float | None = 0.05,
    seed: int = 0,
    dataset: str = "e2e_nlg",
    model: str = "gpt2",
    status: str = "finished",
    loss: float = 1.0,
    scores: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    record: dict[str, Any] | None = None,
    validation: list[float] | None = None,
    epochs: int = 5,
) -> Path:
    """Write one run below ``folder`` and return its directory.

    Args:
        loss: the best validation loss, in nats per token; perplexities are its exponential.
        scores, evaluation: values merged into the defaults; ``{"absent": True}`` writes no file.
        config: dotted keys that differ from the defaults.
        record: keys of run.json to replace.
        validation: the loss after each epoch; by default it falls to ``loss``.
    """
    rank = None if method == "none" else rank
    settings = {
        "seed": seed,
        "model.name": model,
        "model.adapter": None,
        "dataset.name": dataset,
        "train.epochs": epochs,
        "train.batch_size": 128,
        "train.lr": 1e-3,
        "train.validation_fraction": 1.0,
        "fnmodel.name": method,
        "fnmodel.params.rank": rank if rank is not None else 0.05,
        "fnmodel.params.bias": "auto",
        "fnmodel.rosa.sample_method": "random",
        "fnmodel.lora.alpha": None,
        **(config or {}),
    }
    science = {key: value for key, value in settings.items() if key != "seed"}
    group = hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:12]
    variant = hashlib.sha256(json.dumps([science, seed, status, record], default=str).encode()).hexdigest()[:8]
    run = folder / dataset / f"label-{variant}"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(_nested(settings)), encoding="utf-8")
    own = {
        "status": status, "dataset": dataset, "model": model, "method": method, "rank": rank, "seed": seed,
        "group": group,
    }  # fmt: skip
    content = {**_record(method, rank, seed, status, loss, epochs), **own, **(record or {})}
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")
    _write_metrics(run, validation or [loss + 0.5 / (epoch + 1) ** 2 for epoch in range(1, epochs + 1)])
    if status == "finished":
        _write_test(run, loss, seed, evaluation or {}, scores or {})
    return run


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings in mappings."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        node = nested
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return nested


def _record(method: str, rank: float | None, seed: int, status: str, loss: float, epochs: int) -> dict[str, Any]:
    """The fields of run.json that follow from the settings."""
    steps = 100 * epochs
    best = {
        "epoch": epochs,
        "step": steps,
        "loss": loss,
        "perplexity": math.exp(loss),
        "loss_target": loss,
        "loss_all": 1.5 * loss,
    }
    trainable = 124_000_000 if method == "none" else PARAMETERS.get(rank, 1_000_000)
    return {
        "format": 1,
        "bias": {"rosa": "adapted", "lora": "none"}.get(method),
        "started": "2026-01-01T00:00:00",
        "finished": "2026-01-01T00:10:00" if status == "finished" else None,
        "hardware": {"device": "cpu", "name": "a CPU", "processes": 1, "precision": "fp32"},
        "parameters": {"total": 124_000_000, "trainable": trainable, "adapted_layers": 0 if method == "none" else 48},
        "progress": {"epoch": epochs, "step": steps, "total_steps": steps},
        "timings": {
            "train_seconds": 600.0 + seed,
            "validation_seconds": 40.0,
            "resample_seconds": 8.0 if method == "rosa" else 0.0,
            "resamples": 4 if method == "rosa" else 0,
            "samples_per_second": 350.0,
            "tokens_per_second": 21_000.0,
            "peak_memory_mib": 15_000.0 if method == "none" else 13_000.0,
        },
        "best": best,
        "last": best,
        "loss_on": "target",
        "error": None,
    }


def _write_metrics(run: Path, validation: list[float]) -> None:
    points: list[dict[str, Any]] = []
    for epoch, value in enumerate(validation, 1):
        for part in range(1, 11):
            step = 100 * (epoch - 1) + 10 * part
            points.append({"step": step, "epoch": step / 100, "split": "train", "loss": value + 1 / part, "lr": 1e-3})
        points.append(
            {
                "step": 100 * epoch,
                "epoch": float(epoch),
                "split": "validation",
                "loss": value,
                "perplexity": math.exp(value),
                "loss_target": value,
                "loss_all": 1.5 * value,
            }
        )
    (run / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points), encoding="utf-8")


def _write_test(run: Path, loss: float, seed: int, evaluation: dict[str, Any], scores: dict[str, Any]) -> None:
    predictions = run / "test_predictions.txt"
    predictions.write_text(f"A text of seed {seed}.\n", encoding="utf-8")
    if not evaluation.get("absent"):
        full = {
            "loss": loss + 0.1,
            "perplexity": math.exp(loss + 0.1),
            "predictions": 630,
            "limit": None,
            "decoding": DECODING,
            **evaluation,
        }
        (run / "eval.json").write_text(json.dumps({"test": full}), encoding="utf-8")
    if not scores.get("absent"):
        full = {
            "BLEU": 0.65,
            "NIST": 8.5,
            "METEOR": 0.45,
            "ROUGE_L": 0.68,
            "CIDEr": 2.2,
            "predictions_sha256": hashlib.sha256(predictions.read_bytes()).hexdigest(),
            **scores,
        }
        (run / "scores.json").write_text(json.dumps({"test": full}), encoding="utf-8")


def file_name(text: str) -> str:
    """``text`` without the characters that file names in this locale cannot have."""
    encoding = sys.getfilesystemencoding()
    return text.encode(encoding, "ignore").decode(encoding)


def csv_of(runs: Path, dataset: str = "e2e_nlg") -> pd.DataFrame:
    return pd.read_csv(runs / dataset / "results.csv", keep_default_na=False, na_values=[""], dtype={"rank": str})


def row_of(frame: pd.DataFrame, **wanted: object) -> pd.Series:
    for key, value in wanted.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def markdown_rows(runs: Path, dataset: str = "e2e_nlg") -> list[dict[str, str]]:
    """The rows of the first Markdown table, as mappings from the header without its arrow."""
    lines = (runs / dataset / "results.md").read_text(encoding="utf-8").split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    header = [cell.rstrip(" ↑↓") for cell in cells[0]]
    return [dict(zip(header, row, strict=True)) for row in cells[2:]]


def latex_rows(runs: Path, dataset: str = "e2e_nlg") -> list[list[str]]:
    body = (
        (runs / dataset / "results.tex")
        .read_text(encoding="utf-8")
        .split(r"\midrule", 1)[1]
        .split(r"\bottomrule", 1)[0]
    )
    return [line.removesuffix(r" \\").split(" & ") for line in body.strip().splitlines() if line != r"\midrule"]
