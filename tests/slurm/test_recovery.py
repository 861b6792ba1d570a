"""A state that is missing, damaged or of another time: no job is sent twice, and none is called what it is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slurm.conftest import FakeSlurm
from utils.slurm import submit
from utils.slurm.ledger import Ledger

Run = Callable[..., SimpleNamespace]
Statuses = Callable[[], dict[str, dict[str, Any]]]
SWEEP = """
command: "true"
groups:
  - {name: train it, max_jobs: 2, matrix: {a: [1, 2, 3]}}
  - {name: table, after: train it, command: "true"}
"""


@pytest.fixture
def sent(project: Path, slurm: FakeSlurm, run: Run) -> Path:
    """The state folder of a sweep that was sent."""
    (project / "jobs.yaml").write_text(SWEEP)
    assert run().code == 0
    return project / "runs/.jobs"


@pytest.mark.parametrize("accounting", [True, False])
def test_without_its_state_file_a_sweep_is_known_by_its_scripts(
    sent: Path, slurm: FakeSlurm, run: Run, statuses: Statuses, accounting: bool
) -> None:
    if not accounting:
        slurm.misbehave("no-accounting")
    slurm.end(1, 0)
    slurm.end(1, 1, "FAILED", "3:0")
    slurm.set(1, 2, state="RUNNING", reason="None")
    before = statuses()
    (sent / "state.json").unlink()
    assert run("--dry-run").out == ""
    done = run()
    assert done.out == "nothing to send; 1 jobs did not end well: --retry sends them again\n"
    assert "state.json is missing" in done.err
    assert len(slurm.jobs()) == 2
    assert statuses() == before
    (sent / "state.json").unlink()
    assert run("--retry").out == "train it: submitted job 3\n"


def test_a_name_is_not_used_again_after_the_state_was_deleted(
    sent: Path, slurm: FakeSlurm, run: Run, statuses: Statuses
) -> None:
    """What became of jobs that were cancelled before they started is not read from the notes of earlier ones."""
    for job in slurm.jobs():
        for task in job["tasks"]:
            number = str(job["id"])
            names = dict(SLURM_JOB_ID=number, SLURM_ARRAY_JOB_ID=number, SLURM_ARRAY_TASK_ID=task or "0")
            subprocess.run(["bash", job["arguments"][-1]], env=names | {"PATH": "/usr/bin:/bin"}, check=True)
        slurm.set(job["id"], purged=True)
    for name in ("state.json", "scripts"):
        subprocess.run(["rm", "-r", sent / name], check=True)
    assert run("--only", "train it").out == "train it: submitted array 3 of 3 jobs\n"
    assert {job["state"] for job in statuses().values() if job["slurm_id"]} == {"queued"}
    assert run("--cancel").out == "cancelled 3 jobs\n"
    assert {job["state"] for job in statuses().values() if job["slurm_id"]} == {"cancelled"}


def test_jobs_that_slurm_still_has_are_not_sent_beside(sent: Path, slurm: FakeSlurm, run: Run) -> None:
    shutil.rmtree(sent)
    for done in (run(), run("--retry", "--only", "train it")):
        assert done.code == 2 and done.out == "" and "scancel 1 2" in done.err
    assert "scancel 1 2" in run("--dry-run").err
    assert len(slurm.jobs()) == 2
    for number in (1, 2):
        slurm.end(number, state="CANCELLED")
    assert run().code == 0
    assert len({job["name"] for job in slurm.jobs()}) == 4


def test_jobs_of_other_sweeps_are_none_of_ours(sent: Path, slurm: FakeSlurm, run: Run, project: Path) -> None:
    (project / "jobs.yaml").write_text(f"state: elsewhere\n{SWEEP}")
    assert run().code == 0
    slurm.misbehave("down")
    (project / "jobs.yaml").write_text(f"state: a third place\n{SWEEP}")
    done = run()
    assert done.code == 2 and "What SLURM has already is not known" in done.err
    assert len(slurm.jobs()) == 4


def test_an_older_copy_of_the_state_doubles_nothing(
    project: Path, slurm: FakeSlurm, run: Run, statuses: Statuses
) -> None:
    (project / "jobs.yaml").write_text(SWEEP.replace("1, 2, 3", "1"))
    run()
    state = project / "runs/.jobs/state.json"
    older = state.read_text()
    slurm.end(1)
    (project / "jobs.yaml").write_text(SWEEP)
    run()
    slurm.misbehave("refuse", "no")
    (project / "jobs.yaml").write_text(SWEEP.replace("1, 2, 3", "1, 2, 3, 4"))
    assert run().code == 2
    slurm.behave("refuse")
    before = {label: job["slurm_id"] for label, job in statuses().items()}
    state.write_text(older)
    (project / "jobs.yaml").write_text(SWEEP)
    assert run("--dry-run").out == ""
    slurm.end(3)
    assert run().out == "nothing to send\n" and len(slurm.jobs()) == 4
    assert {label: job["slurm_id"] for label, job in statuses().items()}.items() <= before.items()


@pytest.mark.parametrize("accounting", [True, False])
def test_a_number_that_slurm_gave_again_is_another_job(
    project: Path, slurm: FakeSlurm, run: Run, statuses: Statuses, accounting: bool
) -> None:
    """A controller that lost its last seconds begins with the numbers again."""
    (project / "jobs.yaml").write_text("groups: [{name: a, command: 'true', matrix: {x: [0, 1, 2]}}]")
    run()
    (slurm.folder / "jobs.json").write_text("[]")
    (project / "other.yaml").write_text(f"state: other\n{SWEEP}")
    assert run("--fn", "other.yaml").code == 0
    if not accounting:
        slurm.misbehave("no-accounting")
    assert {job["state"] for job in statuses().values()} == {"lost"}
    assert run("--cancel").out == "nothing is queued or running\n" and slurm.calls("scancel") == []
    slurm.misbehave("down")
    assert run("--cancel").code == 2 and slurm.calls("scancel") == []
    slurm.behave("down")
    slurm.end(1)
    assert {job["state"] for job in statuses().values()} == {"lost"}
    assert run("--retry").out == "a: submitted array 3 of 3 jobs\n"
    for task in range(3):  # SLURM alone does not make a job done
        slurm.set(3, task, state="COMPLETED", code="0:0", start="2026-01-02T03:04:05")
    assert {job["state"] for job in statuses().values()} == {"lost"}


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_was_set_is_not_waited_for(
    sent: Path, slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    state = json.loads((sent / "state.json").read_text())
    for item in state["submissions"]:
        item.update(slurm_id=None, created=time.time() + 3600 * hours)
    (sent / "state.json").write_text(json.dumps(state))
    waits: list[float] = []
    monkeypatch.setattr(submit, "LISTING_DELAY", 5.0)
    monkeypatch.setattr(submit, "time", SimpleNamespace(time=time.time, sleep=waits.append))
    done = run()
    assert done.err.count("SLURM has it as job") == 2 and done.out == "nothing to send\n"
    assert waits == [5.0 if hours > 0 else 0.0]
    assert len(slurm.jobs()) == 2


DAMAGE = {
    "seen is a list": {"seen": []},
    "seen holds a text": {"seen": {"0": "done"}},
    "seen has another key": {"seen": {"0": {"state": "done"}}},
    "jobs is null": {"jobs": None},
    "jobs is a text": {"jobs": "ab"},
    "a job names another file": {"jobs": ["../x"]},
    "created is a text": {"created": "now"},
    "created is endless": {"created": 1e300},
    "created is below 0": {"created": -1e20},
    "no number": {"slurm_id": "x; rm"},
    "a token names another file": {"token": "../../x"},
    "array": {"array": 1},
    "unknown": {"more": 1},
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_state_with_wrong_types_is_one_clear_error(
    sent: Path, slurm: FakeSlurm, run: Run, change: dict[str, Any]
) -> None:
    file = sent / "state.json"
    state = json.loads(file.read_text())
    state["submissions"][0].update(change)
    file.write_text(json.dumps(state))
    for arguments in ((), ("-s",), ("--dry-run",)):
        done = run(*arguments)
        assert done.code == 2 and f"{file} is not a sweep's state" in done.err and "Move it away" in done.err
    file.unlink()
    assert run().out == "nothing to send\n"
    assert len(slurm.jobs()) == 2


@pytest.mark.parametrize("change", [{"refused": []}, {"spent": {}}, {"refused": {"a": 1}}, {"submissions": 3}])
def test_the_rest_of_a_state_is_looked_at_too(sent: Path, run: Run, change: dict[str, Any]) -> None:
    file = sent / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert "is not a sweep's state" in run("-s").err


def test_the_ledger_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    sent = dict(
        token="0123456789", name="g.0123456789", group="g", jobs=["g.01234567", "g.89abcdef"], array=True,
        created=1700000000.5, slurm_id="17", seen={"1": dict(state="failed", code=3, note="", elapsed=7)},
    )  # fmt: skip
    content = dict(version=1, submissions=[sent], refused={"g.00000000": "no"}, spent=["aaaaaaaaaa"])
    (tmp_path / "state.json").write_text(json.dumps(content))
    ledger = Ledger.load(tmp_path)
    assert ledger.latest()["g.89abcdef"] == (ledger.submissions[0], 1)
    ledger.save()
    assert json.loads((tmp_path / "state.json").read_text()) == content
