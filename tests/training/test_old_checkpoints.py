"""Checkpoints of earlier versions are resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rosa import adapter_files
from rosa.files import read_description
from tests.training.reading import weights
from utils.training import loop, resume


def interrupted(train: Any, *overrides: str) -> None:
    """Train until step 3."""
    original = loop.train_step

    def stopping(training: Any, *arguments: Any, **options: Any) -> Any:
        if training.progress.step + 1 == 3:
            training.stop.signal = "SIGTERM"
        return original(training, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "train_step", stopping)
        train(*overrides)


def test_a_meter_under_its_old_name_is_read(train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The losses since the last logging point, which the next one is the mean of."""
    whole = train(f"output.path={tmp_path / 'whole'}", "logging.print_freq=2")
    load_state = resume.load_state

    def earlier(checkpoint: Path) -> dict[str, Any]:
        state = load_state(checkpoint)
        for process in state["processes"]:
            process["window"] = process.pop("meter")
            assert len(process["window"]["steps"]) == 1
        return state

    interrupted(train, f"output.path={tmp_path / 'halves'}", "logging.print_freq=2")
    monkeypatch.setattr(resume, "load_state", earlier)
    halves = train(f"output.path={tmp_path / 'halves'}", "logging.print_freq=2")
    assert "resumed from" in halves.log_file.read_text()
    assert [point["loss"] for point in halves.metrics("train")] == [point["loss"] for point in whole.metrics("train")]


def test_a_run_that_decayed_its_pairs_goes_on_so(train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its optimizer has one group of parameters, and its adapter's settings lack the keys that came later."""
    settings = ("fnmodel.rosa.decay=true", "train.weight_decay=0.3", "train.lr=1e-2")
    whole = train(f"output.path={tmp_path / 'whole'}", *settings)
    other = train(f"output.path={tmp_path / 'other'}", *settings[1:])
    interrupted(train, f"output.path={tmp_path / 'halves'}", *settings)

    def earlier(folder: Path) -> dict[str, Any]:
        description = read_description(folder)
        for key in ("decay", "adapt", "basis", "start", "rewarm_steps"):
            del description["config"][key]
        return description

    monkeypatch.setattr(adapter_files, "read_description", earlier)
    halves = train(f"output.path={tmp_path / 'halves'}", *settings)
    assert "resumed from" in halves.log_file.read_text()
    first, second, third = weights(whole.last), weights(halves.last), weights(other.last)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert other.path.name != whole.path.name and any(not torch.equal(first[name], third[name]) for name in first)
