"""What tests read from a run: its weights, its logging points, the run itself; and how they stop one in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from utils.processes.signals import EXIT_INTERRUPTED
from utils.runs import Run, find_runs
from utils.training import loop


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


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Within the ``with`` block a training is asked to stop once it has made optimizer step ``step``, and exits so."""
    original = loop.train_step

    def stopping(training: Any, *arguments: Any, **options: Any) -> Any:
        training.stop.signal = "SIGTERM" if training.progress.step + 1 == step else None
        return original(training, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(loop, "train_step", stopping)
        yield
    assert stopped.value.code == EXIT_INTERRUPTED
