"""The fault suite itself: it would find a fault, and counts what there is."""

from __future__ import annotations

import contextlib
import errno
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.commands import Command, Kill, fail
from tests.faults.conftest import page
from tests.faults.lab import Lab, differences, facts
from tests.faults.test_inputs import judge
from tests.mutations import replace


def test_a_command_is_seen_and_disturbed_from_outside(tmp_path: Path) -> None:
    make = "import os, sys\ntry: os.mkdir(sys.argv[1])\nexcept OSError as error: sys.exit(str(error))\nsys.exit('told')"
    (tmp_path / "script.py").write_text(make)
    for disturbed, code, output in (
        ({"kill": Kill(1, signal=signal.SIGTERM)}, -signal.SIGTERM, ""),
        ({"at": fail(errno.ENOSPC, name="b")}, 1, "No space left"),
        ({}, 1, "told\n"),
    ):
        made = tmp_path / "data" / "run" / "b"
        made.parent.mkdir(parents=True, exist_ok=True)
        ended = Command([str(tmp_path / "script.py"), str(made)], tmp_path, **disturbed).wait()
        assert (ended.code, ended.files, made.exists()) == (code, ["b"], not disturbed) and output in ended.output


def test_what_is_bad_is_counted(tmp_path: Path, small_e2e: Path) -> None:
    lab, script, watched = Lab(tmp_path / "lab", small_e2e), tmp_path / "script.py", tmp_path / "watched"
    watched.mkdir()
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
            judge(lab, "kind", [str(script), str(watched)], ("file.csv",), watched)
    lab.row("kill -9 of training", "the log", 3)["lost"] += 1
    text = page(lab, "pytest --times 1", 120)
    assert "3 kills at random moments, 3 faults in all, 6 bad inputs: 1 runs lost, 0 results changed" in text
    assert "| kind | 2 | 1 | 1 |" in text and "`pytest --times 1` in 2 minutes" in text


def test_facts_see_every_kind_of_change(train: Any) -> None:
    """One bit of a weight, one point twice, one event twice, one file too many."""
    run = train("train.epochs=2", "train.save_every=2").path
    before, events, metrics = facts(run), min(run.glob("events*")), run / "metrics.jsonl"
    weights = run / "checkpoints" / "best" / "adapter.safetensors"
    bit, point = weights.read_bytes(), metrics.read_bytes().splitlines(keepends=True)[-1]
    same = ["last adapter.safetensors"] * (weights.parent.resolve() == (run / "checkpoints" / "last").resolve())
    for path, content, different in (
        (weights, bit[:-1] + bytes([bit[-1] ^ 1]), ["best adapter.safetensors", *same]),
        (metrics, metrics.read_bytes() + point, ["metrics.jsonl"]),
        (events.with_name(f"{events.name}.1"), events.read_bytes(), ["TensorBoard"]),
        (run / ".run.json.abcdefgh", b"", ["files: .run.json.abcdefgh"]),
    ):
        kept = path.read_bytes() if path.exists() else None
        replace(path, content)
        assert differences(before, facts(run)) == different
        replace(path, kept)
    assert not differences(before, facts(run))
