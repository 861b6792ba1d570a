"""All five official scores of a 630-text output: this project in fresh processes, Java, and the official scorer.

The official scorer (Perl and Java) is not part of this repository, so its time is quoted and not measured here. What
is measured, where Java is installed, is its three Java-based scores by the same jars (``--engine java``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Settings, median
from benchmarks.row import ROOT
from utils.data import get_source, group_by_source
from utils.metrics.scoring.reader import read_items

OFFICIAL_SECONDS = 34.0
OFFICIAL_SOURCE = "quoted, not measured in this run: one 630-text output by tuetschek/e2e-metrics on 2 quiet CPU cores"
OUTPUTS = ("primary__*.txt", "references_1.txt")  # in a folder of real outputs; of several the first


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of whole processes: the first on a machine, whose cache is empty, later ones, and the jars'."""
    repeats = 1 if settings.quick else 3
    with tempfile.TemporaryDirectory() as folder:
        predictions, references, kind = _files(settings, Path(folder))
        items = len(read_items(predictions, references).predictions)
        cache = {"XDG_CACHE_HOME": str(Path(folder) / "cache")}
        seconds: dict[str, list[float]] = {
            "cold": [_run(predictions, references, {"XDG_CACHE_HOME": f"{folder}/cold{n}"}) for n in range(repeats)]
        }
        _run(predictions, references, cache)
        seconds["warm"] = [_run(predictions, references, cache) for _ in range(repeats)]
        if shutil.which("java"):
            three = ("--engine", "java", "--metrics", "METEOR,ROUGE_L,CIDEr")
            seconds["jars"] = [_run(predictions, references, cache, *three) for _ in range(repeats)]
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "items": items,
        "predictions": kind,
        "seconds": seconds,
        "median_seconds": medians,
        "official_seconds": OFFICIAL_SECONDS,
        "official_source": OFFICIAL_SOURCE,
        "times_as_fast_as_quoted": {name: round(OFFICIAL_SECONDS / medians[name], 2) for name in ("cold", "warm")},
    }


def _files(settings: Settings, folder: Path) -> tuple[Path, Path, str]:
    """Predictions, references, and what the predictions are."""
    if settings.scores:
        outputs = Path(settings.scores)
        return min(outputs.glob(OUTPUTS[0])), outputs / OUTPUTS[1], "a system's output"
    source = get_source("e2e" if settings.data else "e2e_sample")
    examples = source.load("test", Path(settings.data) if settings.data else None, None)
    groups = [[example.reference for example in group] for group in group_by_source(examples)]
    predictions, references = folder / "predictions.txt", folder / "references.txt"
    # an item's last reference is its prediction, and stays a reference only where it is the only one
    predictions.write_text("".join(f"{group[-1]}\n" for group in groups), encoding="utf-8")
    kept = [group[:-1] or group for group in groups]
    references.write_text("\n".join("".join(f"{text}\n" for text in group) for group in kept), encoding="utf-8")
    return predictions, references, "an item's last reference, held out"


def _run(predictions: Path, references: Path, environment: dict[str, str], *options: str) -> float:
    command = [sys.executable, "-m", "utils.metrics", str(predictions), str(references), *options]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, check=True)
    return round(time.perf_counter() - start, 3)


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table."""
    names = {
        "cold": "this project, the first time on a machine",
        "warm": "this project",
        "jars": "METEOR, ROUGE-L and CIDEr alone, by the official jars (`--engine java`)",
    }
    rows = [[names[name], f"{seconds:.1f}", "measured"] for name, seconds in figures["median_seconds"].items()]
    quoted = ["the official scorer", f"{figures['official_seconds']:.0f}", "quoted"]
    return [[f"all five scores of {figures['items']} texts", "seconds", ""], quoted, *rows]
