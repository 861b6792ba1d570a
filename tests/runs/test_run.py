"""The files of a run's directory, and errors in logging points with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.runs import Run


def test_logging_points_by_split_and_what_is_no_point_named_with_its_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.metrics() == []
    run.metrics_file.write_text('{"split": "train", "loss": 1.5}\n\n{"split": "validation", "loss": 2}\n')
    assert run.metrics("validation") == [{"split": "validation", "loss": 2}] and len(run.metrics()) == 2
    for line, words in (
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"loss": 1}', "is not a logging point"),
    ):
        run.metrics_file.write_text('{"split": "train", "loss": 1.5}\n' + line)
        with pytest.raises(UserError, match=f"metrics.jsonl, line 2.*({words})"):
            run.metrics()


def test_the_files_of_a_run_lie_in_its_directory(tmp_path: Path) -> None:
    """The names are those of existing runs."""
    run = Run(tmp_path)
    assert [run.lock_file(work).name for work in ("train", "eval", "score")] == [
        ".train.lock",
        ".eval.lock",
        ".score.lock",
    ]
    assert run.overrides_file == tmp_path / ".hydra" / "overrides.yaml"
    for name in ("events.out.tfevents.2.x", "events.out.tfevents.1.x", "other"):
        (tmp_path / name).touch()
    assert [path.name[-3] for path in run.board_files()] == ["1", "2"]
