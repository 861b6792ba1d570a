"""What the real commands print is read as it is meant (fixtures/README.md tells where each file comes from)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from utils.slurm.cluster.parse import Row, expand_ids, parse_accounting, parse_queue, parse_submitted, seconds
from utils.slurm.recovery import is_refusal

FIXTURES = Path(__file__).parent / "fixtures"


def queue(name: str) -> dict[str, Row]:
    return {row.id: row for row in parse_queue((FIXTURES / f"squeue-{name}.txt").read_text())}


def accounting(name: str) -> dict[str, Row]:
    return {row.id: row for row in parse_accounting((FIXTURES / f"sacct-{name}.txt").read_text())}


def test_squeue_while_jobs_run() -> None:
    rows = queue("early")
    assert len(rows) == len((FIXTURES / "squeue-early.txt").read_text().splitlines())
    assert rows["13"] == Row("13", "tlimit.t3", "RUNNING", "None", 7, True)
    assert rows["14_9"] == Row("14_9", "arr.t4", "PENDING", "JobArrayTaskLimit", 0, False)
    assert rows["4"] == Row("4", "long.548977dae6", "PENDING", "BeginTime", 0, False, expected="2026-11-24 00:02")
    assert rows["10"].reason == "DependencyNeverSatisfied"
    assert rows["11"].reason == "JobHeldUser"


def test_squeue_when_jobs_have_ended() -> None:
    rows = queue("late")
    states = {
        id: (rows[id].slurm_state, rows[id].elapsed, rows[id].started) for id in ("5", "9", "11", "13", "22", "24")
    }
    assert states == {
        "5": ("CANCELLED", 0, False),
        "9": ("FAILED", 0, True),
        "11": ("CANCELLED", 0, False),
        "13": ("TIMEOUT", 70, True),
        "22": ("NODE_FAIL", 12, True),
        "24": ("FAILED", 1, True),
    }
    assert rows["24"].reason == "RaisedSignal:9(Killed)"


def test_sacct() -> None:
    rows = accounting("late")
    assert rows["1_3"] == Row("1_3", "train-one.24e372af5b", "FAILED", "JobArrayTaskLimit", 2, True, 3, 0)
    assert rows["13"] == Row("13", "tlimit.t3", "TIMEOUT", "", 70, True, 0, 0)
    assert rows["24"] == Row("24", "sig.t7", "FAILED", "", 1, True, 0, 9)
    assert accounting("early")["4"].slurm_state == "REQUEUED"
    assert "5" not in rows and "10" not in rows  # sacct does not know jobs that were never eligible


@pytest.mark.parametrize("rows", [queue("early"), queue("late"), accounting("early"), accounting("late")])
def test_refused_requests_are_told_from_jobs(rows: dict[str, Row]) -> None:
    assert {id for id, row in rows.items() if is_refusal(row)} == {"6", "8"}


def test_the_rest_of_an_array_that_was_cancelled() -> None:
    rows = queue("cancelled")
    moment = time.mktime((2026, 11, 24, 18, 10, 51, 0, 0, -1))
    assert rows["5"] == Row("5", "arrx", "CANCELLED", "JobArrayTaskLimit", 0, False, submitted=moment)
    assert "5_1" not in rows
    rows = accounting("cancelled")
    assert sorted(id for id in rows if id.startswith("5")) == [f"5_{task}" for task in range(10)]
    assert rows["5_1"].slurm_state == "CANCELLED" and not rows["5_1"].started and rows["5_0"].started
    twice = parse_accounting("1_[3-4%1]|a|CANCELLED|0:0|00:00:00|None|None\n1_3|a|FAILED|1:0|0:02|2026-01-01|None\n")
    assert [(row.id, row.slurm_state) for row in twice] == [
        ("1_3", "FAILED"),
        ("1_3", "CANCELLED"),
        ("1_4", "CANCELLED"),
    ]


def test_documented_states() -> None:
    rows = accounting("documented")
    assert rows["31"] == Row("31", "oom.t1", "OUT_OF_MEMORY", "", 70, True, 0, 125)
    assert rows["32"].slurm_state == "PREEMPTED" and rows["32"].elapsed == ((24 + 2) * 60 + 3) * 60 + 4
    assert rows["35"].slurm_state == "CANCELLED"
    assert [id for id in rows if id.startswith("36")] == ["36_0", "36_1", "36_2", "36_5"]
    assert rows["37"].slurm_state == "SOME_NEW_STATE"
    assert not {"35.batch", "38"} & set(rows)


def test_array_ids() -> None:
    assert expand_ids("7_[0-6:3,9]") == ["7_0", "7_3", "7_6", "7_9"]
    assert expand_ids("7_[3%1]") == ["7_3"]
    assert expand_ids("7_3") == ["7_3"] and expand_ids("7") == ["7"]


def test_durations() -> None:
    assert [seconds(text) for text in ("0:07", "1:02:03", "2-00:00:01", "INVALID", "")] == [7, 3723, 172801, 0, 0]


def test_the_time_of_submission() -> None:
    moment = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))
    (row,) = parse_queue("7|a.t|PENDING|0:00|N/A|Priority|2026-01-02T03:04:05\n")
    assert (row.reason, row.submitted) == ("Priority", moment)
    (row,) = parse_accounting("7|a.t|FAILED|1:0|00:00:00|None|None|2026-01-02T03:04:05\n")
    assert (row.reason, row.submitted) == ("", moment)
    (row,) = parse_queue("7|a.t|PENDING|0:00|N/A|odd|reason\n")
    assert (row.reason, row.submitted) == ("odd|reason", None)


@pytest.mark.parametrize(
    ("text", "number"),
    [("12\n", "12"), ("12;cluster\n", "12"), ("warning of a plug-in\n12\n", "12"), ("", None), ("ok\n", None),
     ("Submitted batch job 12\n", None), ("12 13\n", None)],
)  # fmt: skip
def test_submission_answers(text: str, number: str | None) -> None:
    assert parse_submitted(text) == number
