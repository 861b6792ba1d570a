"""What starting costs: ``import rosa`` beyond the libraries it needs, and ``train.py --help``."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

from benchmarks.common import Settings, median
from benchmarks.row import ROOT

IMPORT = """
import time
import torch
from transformers.pytorch_utils import Conv1D
start = time.perf_counter()
import rosa
print(time.perf_counter() - start)
"""
LIBRARIES = """
import time
start = time.perf_counter()
import torch
from transformers.pytorch_utils import Conv1D
print(time.perf_counter() - start)
"""
TARGETS = {"import_rosa": 0.3, "train_help": 3.0}  # seconds


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of each of five fresh processes (two with ``--quick``), after one that fills the file cache."""
    repeats = 2 if settings.quick else 5
    seconds: dict[str, list[float]] = {"libraries": [], "import_rosa": [], "train_help": []}
    for number in range(1 + repeats):
        start = time.perf_counter()
        _python("train.py", "--help")
        found = {
            "train_help": time.perf_counter() - start,
            "libraries": float(_python("-c", LIBRARIES)),
            "import_rosa": float(_python("-c", IMPORT)),
        }
        if number:
            for name, value in found.items():
                seconds[name].append(round(value, 4))
    medians = {name: median(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "median_seconds": medians,
        "target_seconds": TARGETS,
        "within_target": all(medians[name] < limit for name, limit in TARGETS.items()),
    }


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table."""
    names = {
        "libraries": "`import torch` and Conv1D",
        "import_rosa": "`import rosa` beyond them",
        "train_help": "`train.py --help`",
    }
    limits = figures["target_seconds"]
    rows = [[label, f"{figures['median_seconds'][key]:.3f}", f"{limits.get(key, '–')}"] for key, label in names.items()]
    return [["what", "seconds", "target"], *rows]
