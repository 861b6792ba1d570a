"""What tests read from a run: its weights, its logging points, the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from utils.runs import Run, find_runs


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that a checkpoint holds."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {f"{path.name}/{name}": value for name, value in load_file(path).items()}
    return found


def points(run: Run, split: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(point[name] for name in names) for point in run.metrics(split)]


def only_run(folder: Path) -> Run:
    """The one run below ``folder``."""
    (run,) = find_runs([folder])
    return run
