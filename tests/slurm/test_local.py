"""The same jobs on this machine: how many at a time, on which GPUs, in which order, and what is repeated."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slurm.local_work import log, write
from utils.slurm import local

ROOT = Path(__file__).parents[2]
Run = Callable[..., SimpleNamespace]
Statuses = Callable[[], dict[str, dict[str, Any]]]


def test_so_many_at_a_time_and_groups_in_order(work: Path, run: Run, statuses: Statuses) -> None:
    write(
        work,
        "name: z, after: [a, b], paralleljobs: [WORK z]",
        "name: a, max_jobs: 1, paralleljobs: [WORK a1, WORK a2]",
        "name: b, paralleljobs: [WORK b1, WORK b2, WORK b3]",
    )
    done = run("--local", "2")
    assert done.code == 0, done.err
    names = [row[0] for row in log(work)]
    assert sorted(names) == ["a1", "a2", "b1", "b2", "b3", "z"] and names[-1] == "z"
    assert {int(row[1]) for row in log(work)} <= {1, 2} and any(row[1] == "2" for row in log(work))
    found = statuses()
    assert {(job["state"], job["code"], job["slurm_id"]) for job in found.values()} == {("done", 0, "local")}
    assert run("--local").out == "nothing to send\n"
    assert len(log(work)) == 6


def test_a_failure_keeps_what_waits_for_it_and_is_repeated_on_request(work: Path, run: Run, statuses: Statuses) -> None:
    write(work, "name: a, paralleljobs: [WORK ok, WORK fail]", "name: z, after: a, paralleljobs: [WORK z]")
    done = run("--local", "2")
    assert done.code == 2
    assert "1 jobs failed or were stopped, 1 were not started" in done.err
    assert "failed (4)" in done.out
    found = statuses()
    assert [(job["state"], job["code"]) for job in found.values()] == [("done", 0), ("failed", 4), ("not sent", None)]
    assert run("--local").code == 2 and len(log(work)) == 2
    assert run("--local", "--retry").code == 0
    assert [row[0] for row in log(work)][2:] == ["fail", "z"]
    assert {job["state"] for job in statuses().values()} == {"done"}


def test_another_value_of_a_variable_is_no_reason_for_nothing_to_send(
    work: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pilot with a part of the data does not pass for the whole sweep; where a cache lies decides nothing."""
    overrides = "{x: '${FRACTION:-1.0}', dataset.cache: $CACHE}"
    whole = "name: b, paralleljobs: ['echo x=${FRACTION:-1.0} dataset.cache=$CACHE']"
    write(work, f"name: a, command: echo, overrides: {overrides}, matrix: {{seed: [0]}}", whole)
    monkeypatch.setenv("FRACTION", "0.01")
    assert run("--local").code == 0
    for now in ("1.0", ""):
        monkeypatch.setenv("FRACTION", now)
        again = run("--local")
        assert again.code == 2 and "${FRACTION:-1.0} is '1.0' now, but 2 jobs were sent with '0.01'" in again.err
        assert "another state: folder" in again.err and "FRACTION" in run("--dry-run").err
    monkeypatch.setenv("FRACTION", "0.01")
    monkeypatch.setenv("CACHE", "/elsewhere")
    assert run("--local").out == "nothing to send\n" and run("-s").code == 0
    state = work / "runs/.jobs/state.json"
    content = json.loads(state.read_text())
    for submission in content["submissions"]:
        del submission["variables"]
    state.write_text(json.dumps(content))
    monkeypatch.delenv("FRACTION")
    assert run("--local").out == "nothing to send\n", "earlier versions did not note it"


def test_what_waits_runs_again_after_new_jobs(work: Path, run: Run, statuses: Statuses) -> None:
    """And so does what waits for that; nothing runs again without a reason."""
    later = ("name: z, after: a, paralleljobs: [WORK z]", "name: y, after: z, paralleljobs: [WORK y]")
    write(work, "name: a, paralleljobs: [WORK a1]", *later)
    assert run("--local").code == 0
    write(work, "name: a, paralleljobs: [WORK a1, WORK a2]", *later)
    found = list(statuses().values())
    assert [job["state"] for job in found] == ["done", "not sent", "outdated", "outdated"]
    assert found[2]["note"].endswith(" is not sent") and "it sends again the 2 outdated" in run("-s").out
    time.sleep(1)  # the times of starts and ends are whole seconds
    assert run("--local", "--only", "a").code == 0
    assert list(statuses().values())[2]["note"].endswith(" ended after it started")
    assert run("--local").code == 0
    assert [row[0] for row in log(work)] == ["a1", "z", "y", "a2", "z", "y"]
    assert run("--local").out == "nothing to send\n" and {job["state"] for job in statuses().values()} == {"done"}


def test_a_group_that_was_left_out_is_named(work: Path, run: Run) -> None:
    write(work, "name: train, paralleljobs: [WORK a]", "name: table, after: train, paralleljobs: [WORK b]")
    done = run("--local", "--only", "table")
    assert done.code == 2
    assert "a group they wait for was not run (leave out --only, or add --only train)\n" in done.out
    shown = run("--dry-run", "--only", "table").out
    assert "is not sent (leave out --only, or add --only train)" in shown and "--retry" not in shown
    assert run("--local", "--only", "table", "--only", "train").code == 0


@pytest.mark.parametrize(
    ("gpus", "slots", "shares"),
    [("4,5", 2, {"4", "5"}), ("4,5", 1, {"4,5"}), ("4,5", 3, {"4", "5"}), ("GPU-a", 2, {"GPU-a"}), ("-1", 1, {"-1"})],
)
def test_gpus_are_shared_out(
    work: Path, run: Run, monkeypatch: pytest.MonkeyPatch, gpus: str, slots: int, shares: set[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    write(work, "name: a, paralleljobs: [WORK a1, WORK a2, WORK a3]")
    assert run("--local", str(slots)).code == 0
    assert {row[2] for row in log(work)} == shares


def test_gpus_are_counted_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: A (UUID: x)'; echo 'GPU 1: A (UUID: y)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert local.visible_gpus() == ["0", "1"]


def test_inside_an_allocation_its_number_is_not_taken(work: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_TMPDIR"):
        monkeypatch.setenv(name, "7")
    write(work, "name: a, paralleljobs: ['echo $SLURM_JOB_ID-$SLURM_TMPDIR > seen']")
    assert run("--local").code == 0
    assert (work / "seen").read_text() == "-7\n"
