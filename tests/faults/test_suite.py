"""The fault suite itself: it would find a fault, and counts what there is."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.commands import Command, Kill, fail
from tests.faults.compare import differences, facts
from tests.faults.conftest import page
from tests.faults.lab import Lab
from tests.faults.test_inputs import judge


def test_a_command_is_seen_and_disturbed_from_outside(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os, sys; os.mkdir(sys.argv[1] + '/b'); sys.exit('told')")
    runs = tmp_path / "x" / "y"
    runs.mkdir(parents=True)

    def run(**disturbed: Any) -> Any:
        (runs / "b").rmdir() if (runs / "b").exists() else None
        return Command([str(tmp_path / "script.py"), str(runs)], tmp_path, **disturbed).wait()

    ended = run()
    assert (ended.code, ended.output, ended.files) == (1, "told\n", ["b"])
    ended = run(kill=Kill(1, signal=signal.SIGTERM))
    assert (ended.code, ended.files, os.listdir(runs)) == (-signal.SIGTERM, ["b"], [])
    ended = run(at=fail(errno.ENOSPC, name="b"))
    assert ended.code == 1 and "No space left" in ended.output and not os.listdir(runs)


def test_what_is_bad_is_counted(tmp_path: Path, small_e2e: Path) -> None:
    lab, script, folder = Lab(tmp_path / "lab", small_e2e), tmp_path / "script.py", tmp_path / "watched"
    folder.mkdir()
    for text, words in (
        ("print('fine')", None),
        ("import sys; sys.exit('error: file.csv, line 3')", None),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit('something is wrong')", "names none of"),
        ("import os; os.abort()", "ends with -6"),
        ("import sys; open(sys.argv[1] + '/x', 'w'); sys.exit('error: file.csv')", "is written"),
    ):
        script.write_text(text)
        with pytest.raises(AssertionError, match=words) if words else contextlib.nullcontext():
            judge(lab, "kind", [str(script), str(folder)], ("file.csv",), folder)
    lab.row("kill -9 of training", "the log", 3)["lost"] += 1
    text = page(lab, "pytest --times 1", 120)
    assert "3 kills at random moments, 3 faults in all, 6 bad inputs: 1 runs lost, 0 results changed" in text
    assert "| kind | 2 | 1 | 1 |" in text and "`pytest --times 1` in 2 minutes" in text


def test_facts_see_every_kind_of_change(train: Any) -> None:
    """One bit of a weight, one point, one event twice, one file too many."""
    run = train("train.epochs=2", "train.save_every=2").path
    before, weights, metrics = facts(run), run / "checkpoints" / "best" / "adapter.safetensors", run / "metrics.jsonl"
    assert not differences(before, facts(run))
    content, text, events = weights.read_bytes(), metrics.read_text(), min(run.glob("events*"))
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert {"best adapter.safetensors", "last adapter.safetensors"} >= {*differences(before, facts(run))} != set()
    weights.write_bytes(content)
    metrics.write_text(text + text.splitlines()[-1] + "\n")
    assert differences(before, facts(run)) == ["metrics.jsonl"]
    metrics.write_text(text)
    events.with_name(f"{events.name}.1").write_bytes(events.read_bytes())
    assert differences(before, facts(run)) == ["TensorBoard"]
    events.with_name(f"{events.name}.1").unlink()
    (run / ".run.json.abcdefgh").touch()
    assert differences(before, facts(run)) == ["files: .run.json.abcdefgh"]
