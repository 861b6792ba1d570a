"""What ``make faults`` found once: faults that were lost, changed or told badly, each as a quick test."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_config
from tests.records import write_run
from utils.errors import UserError
from utils.evaluation import Options, evaluate_runs
from utils.generation.decoding import Decoding
from utils.io.files import lock, remove_leftovers, write_text
from utils.metrics import Scorer
from utils.metrics.scoring.score_runs import RunScorer, main
from utils.runs import Run, checkpoints, finite
from utils.tables import compile_results

HUGE = 10**400  # JSON and YAML read it, no float holds it


def test_sweep_takes_a_kills_leftovers_only(tmp_path: Path) -> None:
    kept = [".run.json.bak", ".run.json.abcdefghi", "run.json", ".eval.json.abcdefgh", ".train.lock"]
    for name in (*kept, ".run.json.abcd_123"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "run.json")
    assert {path.name for path in tmp_path.iterdir()} == {*kept}


def test_no_command_leaves_a_killed_ones_temporary_files(train: Any, monkeypatch: Any) -> None:
    """As a kill between the temporary file and its rename leaves them, for each file that is replaced as a whole."""
    run = train("train.epochs=1")
    assert evaluate_runs([str(run.path)], Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu")) == 0
    assert main([str(run.path)]) == 0
    whole = {path.relative_to(run.path) for path in run.path.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: None)
        for path in whole:
            replaced = path.suffix in (".json", ".yaml", ".txt", ".jsonl") and path.name != "metrics.jsonl"
            if replaced and path.parts[0] != "checkpoints":
                write_text(run.path / path, "half")
    assert len({path.relative_to(run.path) for path in run.path.rglob("*")} - whole) == 9
    for name in ("eval.json", "scores.json"):
        (run.path / name).unlink()
    run.update_record(status="interrupted")
    train("train.epochs=1")
    (run.path / ".run.json.abcdefgh").touch()  # an evaluation writes it too
    evaluate_runs([str(run.path)], Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu"))
    main([str(run.path)])
    assert {path.relative_to(run.path) for path in run.path.rglob("*") if "tfevents" not in path.name} == {
        path for path in whole if "tfevents" not in path.name
    }


def test_scores_of_another_process_are_kept_and_one_writes_at_a_time(tmp_path: Path, monkeypatch: Any) -> None:
    run = Run(write_run(tmp_path, scores={"absent": True}))
    for split in ("validation", "test"):
        run.predictions(split).write_text("A text.\n")
        run.references(split).write_text("A text.\n")
    original = Scorer.score

    def meanwhile(self: Scorer, predictions: Any) -> Any:
        if not run.scores_file.exists():
            run.scores_file.write_text(json.dumps({"train": {"BLEU": 0.5}}))  # after this process has looked
        return original(self, predictions)

    monkeypatch.setattr(Scorer, "score", meanwhile)
    assert [outcome.state for outcome in RunScorer().score(run)] == ["scored"] * 2
    assert json.loads(run.scores_file.read_text()).keys() == {"train", "validation", "test"}
    with lock(run.path / ".score.lock", "scored"):
        (first, _) = RunScorer(force=True).score(run)
    assert first.state == "failed" and f"already being scored by process {os.getpid()}" in first.reason


def test_a_kill_before_the_last_prune_leaves_no_checkpoint_too_many(train: Any, monkeypatch: Any) -> None:
    """The same command has nothing more to train or save then, and must remove the generation all the same."""
    overrides = ("train.epochs=2", "train.save_every=2")

    def prune(run: Run, keep: Path | None = None) -> None:
        if run.last.resolve().name == "step-00000010":
            raise KeyboardInterrupt
        original(run, keep)

    original = checkpoints.prune
    monkeypatch.setattr(checkpoints, "prune", prune)
    with pytest.raises(KeyboardInterrupt):
        train(*overrides)
    monkeypatch.setattr(checkpoints, "prune", original)
    run = train(*overrides)
    assert run.record()["status"] == "finished"
    # the last, the one before it, and that one's best
    assert sorted(int(path.name[5:]) for path in run.checkpoints.glob("step-*")) == [5, 8, 10]


def test_a_disk_that_fails_while_a_start_is_undone_hides_no_error(train: Any, monkeypatch: Any) -> None:
    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(UserError, match="warmup_steps=99"):
        train("train.warmup_steps=99")


@pytest.mark.parametrize("value", [HUGE, -HUGE, float("nan"), True, "1", None], ids=lambda value: str(value)[:5])
def test_what_is_no_finite_number_counts_as_none(value: Any) -> None:
    assert finite(value) is None
    assert finite(3) == 3 and finite(0.5) == 0.5


def test_numbers_beyond_all_floats_are_told_and_stop_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.lr is a number beyond all floats"):
        make_config(f"train.lr={HUGE}")
    run = Run(write_run(tmp_path, scores={"SER": HUGE}, evaluation={"perplexity": HUGE}))
    compile_results([tmp_path])
    run.predictions().write_text("A text.\n")
    run.references().write_text("A text.\n")
    assert main([str(tmp_path)]) == 0
    content = run.scores_file.read_text().replace('"BLEU": ', f'"BLEU": {HUGE}')
    run.scores_file.write_text(content)
    assert main([str(tmp_path)]) == 0
    assert run.scores()["BLEU"] <= 1
