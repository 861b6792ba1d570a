"""Checkpoints of earlier versions are resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from utils.training import loop, resume


def test_a_meter_under_its_old_name_is_read(train: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The losses since the last logging point, which the next one is the mean of."""
    whole = train(f"output.path={tmp_path / 'whole'}", "logging.print_freq=2")
    original, load_state = loop.train_step, resume.load_state

    def stopping(training: Any, *arguments: Any, **options: Any) -> Any:
        if training.progress.step + 1 == 3:
            training.stop.signal = "SIGTERM"
        return original(training, *arguments, **options)

    def earlier(checkpoint: Path) -> dict[str, Any]:
        state = load_state(checkpoint)
        for process in state["processes"]:
            process["window"] = process.pop("meter")
            assert len(process["window"]["steps"]) == 1
        return state

    monkeypatch.setattr(loop, "train_step", stopping)
    with pytest.raises(SystemExit):
        train(f"output.path={tmp_path / 'halves'}", "logging.print_freq=2")
    monkeypatch.setattr(loop, "train_step", original)
    monkeypatch.setattr(resume, "load_state", earlier)
    halves = train(f"output.path={tmp_path / 'halves'}", "logging.print_freq=2")
    assert "resumed from" in halves.log_file.read_text()
    assert [point["loss"] for point in halves.metrics("train")] == [point["loss"] for point in whole.metrics("train")]
