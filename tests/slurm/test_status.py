"""Each end of a job is shown as what it is, with accounting and without, and is not forgotten when SLURM does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slurm.conftest import FakeSlurm
from utils.slurm.cluster.client import Listing
from utils.slurm.cluster.parse import parse_accounting, parse_queue
from utils.slurm.ledger import Ledger, Submission
from utils.slurm.status import JobStatus, job_statuses
from utils.slurm.sweep.file import load_sweep

Run = Callable[..., SimpleNamespace]
Statuses = Callable[[], dict[str, dict[str, Any]]]
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def one(project: Path, slurm: FakeSlurm, run: Run) -> Path:
    """A sweep of one job, sent."""
    (project / "jobs.yaml").write_text("groups: [{name: g, command: 'true'}]")
    run()
    return project / "runs/.jobs"


def note(state: Path, *lines: str) -> None:
    """What the job's script noted."""
    token = json.loads((state / "state.json").read_text())["submissions"][0]["token"]
    (state / "events" / f"{token}-0").write_text("".join(f"{line}\n" for line in lines))


def listed(project: Path, moment: str, *numbers: int) -> dict[str, JobStatus]:
    """The statuses that follow from what the real commands printed, by SLURM's number; of scripts only 12's noted a
    start."""
    queue = (FIXTURES / f"squeue-{moment}.txt").read_text() if moment != "documented" else ""
    rows = Listing(parse_queue(queue), parse_accounting((FIXTURES / f"sacct-{moment}.txt").read_text()))
    (project / "jobs.yaml").write_text(f"groups: [{{name: g, command: x, matrix: {{n: {list(numbers)}}}}}]")
    sweep = load_sweep(project / "jobs.yaml")
    names = {row.id: row.name for row in [*(rows.queue or []), *(rows.accounting or [])]}
    sent = [
        Submission(f"t{number}", names[str(number)], "g", [job.id], False, 0.0, str(number))
        for number, job in zip(numbers, sweep.jobs, strict=True)
    ]
    (project / "state/events").mkdir(parents=True, exist_ok=True)
    (project / "state/events/t12-0").write_text("100 start 12 node 9 0 0\n")
    found = job_statuses(sweep, Ledger(project / "state", sent), rows)
    return {status.slurm_id or "": status for status in found.values()}


def test_what_the_real_commands_listed(project: Path) -> None:
    found = listed(project, "late", 4, 5, 9, 10, 11, 12, 13, 22, 23, 24)
    assert {number: (status.state, status.code) for number, status in found.items()} == {
        "4": ("queued", None),  # put back by its script, whose notes are not here
        "5": ("cancelled", None),
        "9": ("failed", 3),
        "10": ("cancelled", None),
        "11": ("cancelled", None),
        "12": ("done", 0),
        "13": ("timeout", None),
        "22": ("node failed", 1),
        "23": ("running", None),
        "24": ("failed", 137),
    }
    assert found["11"].note == "before it started"
    assert found["24"].note == "killed by signal 9"
    assert (found["13"].elapsed, found["23"].elapsed) == (70, 4)
    early = listed(project, "early", 4, 10, 11, 13)
    assert [status.state for status in early.values()] == ["queued", "never", "held", "running"]


@pytest.mark.parametrize("accounting", [True, False])
def test_arrays_that_were_cancelled(project: Path, accounting: bool) -> None:
    (project / "jobs.yaml").write_text("groups: [{name: g, command: x, matrix: {n: [0, 1, 2, 3]}}]")
    sweep = load_sweep(project / "jobs.yaml")
    listed = (FIXTURES / "sacct-cancelled.txt").read_text() if accounting else ""
    rows = Listing(parse_queue((FIXTURES / "squeue-cancelled.txt").read_text()), parse_accounting(listed))
    for number in ("5", "6", "7"):
        name = next(row.name for row in rows.queue or [] if row.id.partition("_")[0] == number)
        sent = Submission("t", name, "g", [job.id for job in sweep.jobs], True, 0.0, number)
        found = job_statuses(sweep, Ledger(project / "state", [sent]), rows)
        assert {status.state for status in found.values()} == {"cancelled"}
        assert [status.note for status in found.values()][1:] == ["before it started"] * 3


def test_states_from_the_manual(project: Path) -> None:
    found = listed(project, "documented", 31, 32, 33, 34, 35)
    assert [(status.state, status.code) for status in found.values()] == [
        ("out of memory", None),
        ("preempted", None),
        ("node failed", 1),
        ("timeout", 143),
        ("cancelled", None),
    ]


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        ("PENDING", "Priority", "queued"),
        ("PENDING", "Dependency", "waiting"),
        ("PENDING", "DependencyNeverSatisfied", "never"),
        ("PENDING", "JobHeldUser", "held"),
        ("PENDING", "launch failed requeued held", "held"),
        ("RUNNING", "None", "running"),
        ("COMPLETING", "None", "running"),
        ("SUSPENDED", "None", "running"),
        ("REQUEUED", "None", "requeued"),
        ("SOMETHING_NEW", "None", "unknown"),
    ],
)
def test_what_is_alive(
    one: Path, slurm: FakeSlurm, statuses: Statuses, run: Run, state: str, reason: str, shown: str
) -> None:
    slurm.set(1, state=state, reason=reason)
    assert statuses()["true"]["state"] == shown
    run("--retry")
    assert len(slurm.jobs()) == (2 if shown == "never" else 1)


@pytest.mark.parametrize(
    ("reason", "start", "note"),
    [
        ("Priority", "N/A", "Priority: other jobs come first"),
        ("Resources", "2026-01-02T03:04:05", "Resources: nothing is free that it could use; expected to start 2026-"),
        ("QOSMaxGRESPerUser", "N/A", "QOSMaxGRESPerUser: a limit of its quality of service"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "N/A", "UnavailableNodes:n[1-2]: nodes it could use are down"),
        ("SomethingNew", "N/A", "SomethingNew"),
        ("None", "N/A", ""),
    ],
)
def test_why_a_job_waits(one: Path, slurm: FakeSlurm, statuses: Statuses, reason: str, start: str, note: str) -> None:
    slurm.set(1, state="PENDING", reason=reason, start=start)
    found = statuses()["true"]["note"]
    assert note in found and bool(note) == bool(found)


def test_a_job_that_went_back_to_the_queue(one: Path, slurm: FakeSlurm, statuses: Statuses) -> None:
    note(one, "100 start 1 node 9 0 160", "150 signal USR1", "151 exit 75 USR1", "151 requeue")
    slurm.set(1, state="PENDING", reason="BeginTime")
    assert statuses()["true"]["state"] == "requeued"


@pytest.mark.parametrize(
    ("lines", "state", "code"),
    [
        (["100 start 1 node 9 0 500", "107 exit 0 -"], "done", 0),
        (["100 start 1 node 9 0 500", "107 exit 3 -"], "failed", 3),
        (["100 start 1 node 9 0 500", "107 exit 137 -"], "failed", 137),
        (["100 start 1 node 9 0 500", "107 exit 75 -"], "interrupted", 75),
        (["100 start 1 node 9 0 500", "107 signal USR1", "107 exit 138 USR1"], "failed", 138),
        (["100 start 1 node 9 0 500", "107 signal TERM", "107 exit 75 TERM"], "cancelled", 75),
        (["100 start 1 node 9 0 500", "501 signal TERM", "507 exit 75 TERM"], "timeout", 75),
        (["100 start 1 node 9 0 500", "501 signal TERM"], "timeout", None),
        (["100 start 1 node 9 0 500", "107 signal TERM"], "cancelled", None),
        (["100 start 1 node 9 0 500"], "lost", None),
        (["100 start 1 node 9 0 500", "107 signal USR1", "107 exit 75 USR1", "107 requeue"], "lost", 75),
        ([], "lost", None),
    ],
)
def test_what_only_the_script_remembers(
    one: Path, slurm: FakeSlurm, statuses: Statuses, lines: list[str], state: str, code: int | None
) -> None:
    slurm.misbehave("no-accounting")
    slurm.set(1, purged=True)
    if lines:
        note(one, *lines)
    found = statuses()["true"]
    assert (found["state"], found["code"]) == (state, code)
    assert (found["note"] == "it reached its time limit of 0:07:00") == (state == "timeout")
    if len(lines) == 2 and "exit" in lines[1]:
        assert found["elapsed"] == 7


def test_what_has_ended_is_remembered_when_slurm_forgets(one: Path, slurm: FakeSlurm, statuses: Statuses) -> None:
    slurm.misbehave("no-accounting")
    slurm.end(1, state="NODE_FAIL", code="1:0")
    assert statuses()["true"]["state"] == "node failed"
    slurm.set(1, purged=True)
    assert statuses()["true"]["state"] == "node failed"
    slurm.set(1, purged=False, state="RUNNING", reason="None")  # an administrator put it back
    assert statuses()["true"]["state"] == "running"
    slurm.set(1, purged=True)
    assert statuses()["true"]["state"] == "lost"


def test_the_scripts_own_exit_code_is_the_truer_one(one: Path, slurm: FakeSlurm, statuses: Statuses) -> None:
    slurm.end(1, state="FAILED", code="9:0")
    note(one, "100 start 1 a 9 0 500", "107 code 137", "107 exit 137 -")
    found = statuses()["true"]
    assert (found["state"], found["code"], found["note"]) == ("failed", 137, "killed by signal 9")


def test_a_failure_is_told_with_its_last_words(one: Path, slurm: FakeSlurm, statuses: Statuses) -> None:
    slurm.end(1, state="FAILED", code="2:0")
    assert statuses()["true"]["note"] == ""
    log = Path(statuses()["true"]["log"])
    log.write_bytes(b"x" * 9000 + b"\nerror: \x1b[1mno data\xff \n\n")
    assert statuses()["true"]["note"] == "error:  [1mno data\ufffd"
    log.write_text("y" * 9000)
    assert statuses()["true"]["note"] == "y" * 200
    slurm.end(1)
    assert statuses()["true"]["note"] == ""


def test_a_preempted_attempt_does_not_hide_the_later_success(one: Path, slurm: FakeSlurm, statuses: Statuses) -> None:
    slurm.end(1, state="PREEMPTED")
    assert statuses()["true"]["state"] == "preempted"
    note(one, "100 start 1 a 9 0 500", "107 signal TERM", "107 exit 75 TERM", "200 start 1 b 9 1 600", "300 exit 0 -")
    assert statuses()["true"]["state"] == "done"


def test_no_answer_from_squeue_is_said_and_nothing_is_called_lost(
    one: Path, slurm: FakeSlurm, run: Run, statuses: Statuses
) -> None:
    slurm.misbehave("down")
    assert "Unable to contact slurm controller" in run("-s").err
    assert statuses()["true"]["state"] == "unknown"
    slurm.end(1, state="TIMEOUT")
    assert statuses()["true"]["state"] == "timeout"  # sacct still answers


def test_progress_is_that_of_the_runs_record(one: Path, project: Path, statuses: Statuses, run: Run) -> None:
    assert statuses()["true"]["run"] is None
    job = statuses()["true"]["id"]
    folder = project / "runs/e2e/some run"
    (one / "pointers" / job).write_text(f"{project}/runs/e2e/first\n{folder}\n")
    assert statuses()["true"]["epoch"] is None
    folder.mkdir(parents=True)
    record = dict(status="running", progress=dict(epoch=1.5, step=30, total_steps=100), last=dict(loss=2.25))
    (folder / "run.json").write_text(json.dumps(record))
    found = statuses()["true"]
    assert (found["epoch"], found["step"], found["total_steps"], found["loss"]) == (1.5, 30, 100, 2.25)
    assert found["runs"] == [f"{project}/runs/e2e/first", str(folder)]
    table = run("-s").out
    assert "1.5" in table and "2.2500" in table and "  e2e/some run (+1)  " in table


def test_jobs_that_left_the_file_are_still_shown(one: Path, project: Path, run: Run, slurm: FakeSlurm) -> None:
    (project / "jobs.yaml").write_text("groups: [{name: g, command: 'false'}, {name: h, command: 'false'}]")
    assert run("-s").out.splitlines()[:3] == ["g: 1 not sent, 1 queued", "h: 1 not sent", "all: 2 not sent, 1 queued"]
    shown = json.loads(run("-s", "--json").out)["jobs"]
    assert [(job["label"], job["state"]) for job in shown] == [
        ("false", "not sent"),
        ("false", "not sent"),
        ("(not in the sweep file)", "queued"),
    ]


def test_a_thousand_jobs_take_one_call_each(project: Path, slurm: FakeSlurm, run: Run) -> None:
    values = list(range(1000))
    (project / "jobs.yaml").write_text(f"groups: [{{name: g, command: 'true', matrix: {{a: {values}}}}}]")
    assert run().out == "g: submitted array 1 of 1000 jobs\n"
    before = len(slurm.calls("sacct")), len(slurm.calls("squeue"))
    table = run("-s").out
    assert "all: 1000 queued" in table and len(table.splitlines()) == 2 + 1 + 50 + 1
    assert (len(slurm.calls("sacct")), len(slurm.calls("squeue"))) == (before[0] + 1, before[1] + 1)
    assert len(run("-s", "--only", "g").out.splitlines()) == 1003
    for task in range(500):
        slurm.end(1, task)
    slurm.end(1, 990, "FAILED", "1:0")
    slurm.set(1, 980, state="RUNNING", reason="None")
    rows = [line.split()[2] for line in run("-s").out.splitlines()[3:53]]
    assert rows == ["queued"] * 48 + ["running", "failed"]
