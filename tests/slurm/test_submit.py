"""What is sent to SLURM: once, in arrays, behind what it waits for; and what was refused or failed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slurm.conftest import FakeSlurm
from utils.slurm import submit
from utils.slurm.ledger import changing

Run = Callable[..., SimpleNamespace]
Statuses = Callable[[], dict[str, dict[str, Any]]]

TWO = """
command: "true"
groups:
  - {name: train, max_jobs: 2, matrix: {a: [1, 2, 3]}}
  - {name: table, after: train, command: "true"}
"""


@pytest.fixture
def two(project: Path, slurm: FakeSlurm) -> Path:
    (project / "jobs.yaml").write_text(TWO)
    return project


def test_a_sweep_goes_as_arrays_with_a_limit_and_dependencies(two: Path, slurm: FakeSlurm, run: Run) -> None:
    done = run("--fn", "jobs.yaml")
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["train: submitted array 1 of 3 jobs", "table: submitted job 2"]
    first, second = slurm.jobs()
    assert "#SBATCH --array=0-2%2\n" in first["script"]
    assert [word for word in first["arguments"] if word.startswith("--dep")] == []
    assert first["arguments"][0] == "--parsable"
    assert "--dependency=afterok:1" in second["arguments"]
    assert "--array" not in second["script"]
    assert Path(first["arguments"][-1]).read_text() == first["script"]


def test_what_is_queued_running_or_done_is_not_sent_twice(two: Path, slurm: FakeSlurm, run: Run) -> None:
    run()
    slurm.end(1, 0)
    slurm.set(1, 1, state="RUNNING", reason="None")
    for _ in range(2):
        done = run("--retry")
        assert done.code == 0 and done.out == "nothing to send\n"
    assert len(slurm.jobs()) == 2
    (two / "jobs.yaml").write_text(TWO.replace("[1, 2, 3]", "[3, 4, 1]"))
    assert run().out == "train: submitted job 3\n"
    assert re.findall(r"^true a=.*", slurm.jobs()[2]["script"], re.M) == ["true a=4"]


def test_what_waits_is_sent_again_behind_new_jobs(two: Path, slurm: FakeSlurm, run: Run) -> None:
    run()
    slurm.end(1)
    slurm.end(2)
    assert run().out == "nothing to send\n"
    (two / "jobs.yaml").write_text(TWO.replace("[1, 2, 3]", "[1, 2, 3, 4]"))
    assert "where train." in run("--only", "table").out and len(slurm.jobs()) == 2
    assert run().out.splitlines() == ["train: submitted job 3", "table: submitted job 4"]
    assert "--dependency=afterok:3" in slurm.jobs()[3]["arguments"]
    slurm.end(3)
    slurm.end(4)
    assert run().out == "nothing to send\n"


def test_what_failed_is_sent_again_with_retry_only(two: Path, slurm: FakeSlurm, run: Run, statuses: Statuses) -> None:
    run()
    slurm.end(1, 0)
    slurm.end(1, 1, "FAILED", "3:0")
    slurm.end(1, 2, "TIMEOUT", "0:0")
    slurm.set(2, reason="DependencyNeverSatisfied")
    assert run().out == "nothing to send; 3 jobs did not end well: --retry sends them again\n"
    assert run("--only", "table").out == "nothing to send; 1 jobs did not end well: --retry sends them again\n"
    assert len(slurm.jobs()) == 2
    assert run("--retry").out.splitlines() == ["train: submitted array 3 of 2 jobs", "table: submitted job 4"]
    assert re.findall(r"^true a=.*", slurm.jobs()[2]["script"], re.M) == ["true a=2", "true a=3"]
    assert "--dependency=afterok:3" in slurm.jobs()[3]["arguments"]  # what is done needs no waiting for
    assert slurm.calls("scancel") == [["2"]]  # it would have waited for ever
    assert {label: job["state"] for label, job in statuses().items()} == {
        "a=1": "done", "a=2": "queued", "a=3": "queued", "true": "queued",
    }  # fmt: skip


def test_a_dependency_names_single_tasks_where_others_were_sent_anew(two: Path, slurm: FakeSlurm, run: Run) -> None:
    (two / "jobs.yaml").write_text(TWO.partition("  - {name: table")[0])
    run()
    slurm.end(1, 1, "FAILED", "1:0")
    run("--retry")
    (two / "jobs.yaml").write_text(TWO)
    run()
    assert "--dependency=afterok:1_0:2:1_2" in slurm.jobs()[2]["arguments"]


def test_a_group_is_held_back_while_one_it_waits_for_has_failed(two: Path, slurm: FakeSlurm, run: Run) -> None:
    run("--only", "train")
    assert len(slurm.jobs()) == 1
    slurm.end(1, 0)
    slurm.end(1, 1)
    slurm.end(1, 2, "FAILED", "1:0")
    done = run()
    assert done.code == 0
    assert re.fullmatch(
        r"table: not sent, it waits for train, where train\.\w{8} is failed \(--retry sends that again\)\n", done.out
    )
    assert len(slurm.jobs()) == 1
    assert "--retry sends again the 1" in run("-s").out and "called without -s" not in run("-s").out
    run("--retry")
    assert [job["arguments"][1:-1] for job in slurm.jobs()[1:]] == [[], ["--dependency=afterok:2"]]
    slurm.end(2, None, "FAILED", "1:0")
    slurm.set(3, reason="DependencyNeverSatisfied")
    assert "it waits for train" in run("--retry", "--only", "table").out
    assert slurm.calls("scancel") == [], "what is not sent again is left alone"


def test_a_refusal_stops_in_slurms_own_words_and_is_no_job(
    two: Path, slurm: FakeSlurm, run: Run, statuses: Statuses
) -> None:
    words = "sbatch: error: Memory specification can not be satisfied"
    slurm.misbehave("refuse", words)
    done = run()
    assert done.code == 2
    assert done.err.startswith(f"error: sbatch refused group train:\n{words}\n")
    assert "table: not sent, it waits for train, where" in done.out
    assert len(slurm.jobs()) == 1  # SLURM lists it all the same, and what waits for it was not sent
    assert [(job["state"], job["slurm_id"]) for job in statuses().values()] == [("refused", None)] * 3 + [
        ("not sent", None)
    ]
    assert words in statuses()["a=1"]["note"]
    assert not list((two / "runs/.jobs/scripts").iterdir())
    slurm.behave("refuse")
    assert run().code == 0
    assert len(slurm.jobs()) == 3
    names = [job["name"] for job in slurm.jobs()]
    assert len(set(names)) == 3, "a refused name must not be used again"
    assert {job["state"] for job in statuses().values()} == {"queued"}


def test_a_refusal_stops_only_what_waits_for_it(project: Path, slurm: FakeSlurm, run: Run) -> None:
    names = {"big": "[]", "too": "[]", "behind": "[big]", "small": "[]", "tables": "[small]"}
    groups = ", ".join(f"{{name: {name}, after: {after}, command: 'true'}}" for name, after in names.items())
    (project / "jobs.yaml").write_text(f"groups: [{groups}]")
    slurm.misbehave("refuse", "sbatch: error: no")
    slurm.misbehave("refuse-only", "big")
    done = run()
    assert done.code == 2 and done.err.startswith("error: sbatch refused group big:\nsbatch: error: no\n")
    assert [line.partition(":")[0] for line in done.out.splitlines()] == ["too", "behind", "small", "tables"]
    shown = json.loads(run("-s", "--json").out)["jobs"]
    assert {job["group"]: job["state"] for job in shown} == {
        "big": "refused", "behind": "not sent", "too": "queued", "small": "queued", "tables": "queued",
    }  # fmt: skip


def test_a_retry_takes_what_waits_along(project: Path, slurm: FakeSlurm, run: Run) -> None:
    """At SLURM it waits for the jobs that failed, although they are sent again before the others have ended."""
    afters = {"n": "[]", "o": "[n]", "p": "[o]", "z": "[]", "q": "[z]"}
    text = ", ".join(f"{{name: {name}, after: {after}, matrix: {{a: [0, 1, 2]}}}}" for name, after in afters.items())
    (project / "jobs.yaml").write_text(f"command: 'true'\ngroups: [{text}]")
    run()
    slurm.end(1, 0, "FAILED", "1:0")
    slurm.set(1, 1, state="RUNNING", reason="None")
    for number in (2, 3, 5):
        slurm.set(number, reason="Dependency")
    assert run().out == "nothing to send; 1 jobs did not end well: --retry sends them again\n"
    assert run("--retry").out.splitlines() == [
        "n: submitted job 6", "o: submitted array 7 of 3 jobs", "p: submitted array 8 of 3 jobs",
    ]  # fmt: skip
    assert slurm.calls("scancel") == [["2_0", "2_1", "2_2"], ["3_0", "3_1", "3_2"]]
    given = [job["arguments"][1:-1] for job in slurm.jobs()[5:]]
    assert given == [[], ["--dependency=afterok:6:1_1:1_2"], ["--dependency=afterok:7"]]
    assert run("--retry").out == "nothing to send\n"


@pytest.mark.parametrize("accounting", [True, False])
def test_an_unclear_answer_is_looked_up_before_anything_is_sent(
    two: Path, slurm: FakeSlurm, run: Run, statuses: Statuses, accounting: bool
) -> None:
    if not accounting:
        slurm.misbehave("no-accounting")
    slurm.misbehave("unclear", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    done = run()
    assert done.code == 2 and "no clear answer" in done.err and "Socket timed out" in done.err
    slurm.behave("unclear")
    done = run()
    assert "SLURM has it as job 1\n" in done.err
    assert done.out == "table: submitted job 2\n"
    assert len(slurm.jobs()) == 2
    assert statuses()["a=2"]["slurm_id"] == "1_1"


def test_sbatch_takes_from_the_environment_only_what_keeps_the_job_to_be_found(
    two: Path, slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    site = {"SBATCH_ACCOUNT": "lab", "SLURM_CONF": "/etc/slurm.conf"}
    own = dict.fromkeys(["SBATCH_JOB_NAME", "SBATCH_OUTPUT", "SBATCH_WAIT", "SBATCH_ARRAY_INX", "SLURM_JOB_ID"], "1")
    for name, value in {**site, **own, "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "20"}.items():
        monkeypatch.setenv(name, value)
    assert run().code == 0
    assert [job["environment"] for job in slurm.jobs()] == [site, site]


def test_another_cluster_is_asked_where_the_environment_names_one(
    two: Path, slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    run("-s")
    assert "--clusters" not in str(slurm.calls("sacct"))
    monkeypatch.setenv("SBATCH_CLUSTERS", "big")
    run("-s")
    assert "--clusters=big" in slurm.calls("sacct")[-1]


def test_two_jobrunners_on_a_file_system_without_locks(
    two: Path, slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("utils.slurm.ledger.PATIENCE", 0.0)
    with changing(two / "runs/.jobs"):
        done = run()
    assert done.code == 2 and "is already being managed by process" in done.err and slurm.jobs() == []
    assert run().code == 0
    assert len(slurm.jobs()) == 2


def test_an_answer_that_names_no_job_is_never_recorded(two: Path, slurm: FakeSlurm, run: Run) -> None:
    slurm.misbehave("garbage", "Submitted!")
    done = run()
    assert done.code == 2 and "sbatch printed no job number: Submitted!" in done.err
    state = json.loads((two / "runs/.jobs/state.json").read_text())
    assert [item["slurm_id"] for item in state["submissions"]] == [None]
    slurm.behave("garbage")
    run()
    assert [job["name"].partition(".")[0] for job in slurm.jobs()] == ["train", "table"]


def test_nothing_is_decided_while_squeue_gives_no_answer(two: Path, slurm: FakeSlurm, run: Run) -> None:
    slurm.misbehave("garbage", "?")
    run()
    slurm.behave("garbage")
    slurm.misbehave("down")
    done = run()
    assert done.code == 2 and "Unable to contact slurm controller" in done.err and "is not known" in done.err
    assert len(slurm.jobs()) == 1
    slurm.behave("down")
    assert run().out == "table: submitted job 2\n"


def test_groups_that_are_no_arrays_keep_their_limit_by_dependencies(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text(
        "groups: [{name: g, array: false, max_jobs: 2, command: 'true', matrix: {a: [1, 2, 3, 4]}}]"
    )
    run()
    assert [job["arguments"][1:-1] for job in slurm.jobs()] == [
        [], [], ["--dependency=afterany:1"], ["--dependency=afterany:2"],
    ]  # fmt: skip


def test_large_groups_are_cut_into_arrays_that_keep_the_limit(
    project: Path, slurm: FakeSlurm, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "LARGEST_ARRAY", 3)
    values = list(range(7))
    (project / "jobs.yaml").write_text(
        f"groups: [{{name: g, max_jobs: 2, command: 'true', matrix: {{a: {values}}}}}, "
        f"{{name: h, command: 'false', matrix: {{a: {values}}}}}, {{name: z, after: [g], command: 'true'}}]"
    )
    run()
    given = [(job["arguments"][1:-1], re.findall("--array=.*", job["script"])) for job in slurm.jobs()]
    assert given == [
        ([], ["--array=0-2%2"]),
        (["--dependency=afterany:1"], ["--array=0-2%2"]),
        (["--dependency=afterany:2"], []),
        ([], ["--array=0-2"]),
        ([], ["--array=0-2"]),
        ([], []),
        (["--dependency=afterok:1:2:3"], []),
    ]


def test_a_retry_takes_what_still_runs_off_its_limit(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text(
        "groups: [{name: g, max_jobs: 4, command: 'true', matrix: {a: [1, 2, 3, 4, 5]}}]"
    )
    run()
    for task in range(3):
        slurm.end(1, task, "FAILED", "1:0")
    run("--retry")
    assert "--array=0-2%2\n" in slurm.jobs()[1]["script"]


@pytest.mark.parametrize(("array", "ids"), [("true", ["1"]), ("false", ["1:2"] * 2)])
def test_later_jobs_keep_the_limit(project: Path, slurm: FakeSlurm, run: Run, array: str, ids: list[str]) -> None:
    text = "groups: [{{name: g, array: {}, max_jobs: 2, command: 'true', matrix: {{a: {}}}}}]"
    for values in ([1, 2], [1, 2, 3, 4]):
        (project / "jobs.yaml").write_text(text.format(array, values))
        run()
    given = [(*job["arguments"][1:-1], "--array=0-1%2" in job["script"]) for job in slurm.jobs()[-len(ids) :]]
    assert given == [(f"--dependency=afterany:{one}", array == "true") for one in ids]


def test_the_dry_run_prints_what_is_then_sent_and_sends_nothing(two: Path, slurm: FakeSlurm, run: Run) -> None:
    shown = run("--dry-run")
    assert shown.code == 0
    assert slurm.jobs() == [] and not (two / "runs").exists()
    run()
    for job in slurm.jobs():
        assert job["script"] in shown.out
    first, second = slurm.jobs()
    assert f"# sbatch --parsable {first['arguments'][-1]}\n" in shown.out
    assert f"# sbatch --parsable --dependency=afterok:<{first['name']}> {second['arguments'][-1]}\n" in shown.out
    assert run("--dry-run").out == ""


def test_cancel(two: Path, slurm: FakeSlurm, run: Run, statuses: Statuses) -> None:
    assert run("--cancel").out == "nothing is queued or running\n"
    assert not (two / "runs").exists()
    run()
    slurm.end(1, 0)
    assert run("--cancel", "--only", "train").out == "cancelled 2 jobs\n"
    assert slurm.calls("scancel") == [["1"]]
    assert run("--cancel").out == "cancelled 1 jobs\n"
    assert [job["state"] for job in statuses().values()] == ["done", "cancelled", "cancelled", "cancelled"]
