"""A sweep of tiny trainings on a real SLURM, from the first submission to the table, with accounting and without.

The cluster is this machine alone, started and stopped by scripts/slurm_up.sh and scripts/slurm_down.sh. Run with
``pytest -m slurm tests/slurm``; a time limit takes up to 90 seconds to strike.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import ROOT
from tests.slurm.real_cluster import jobrunner, states, statuses, wait_for

pytestmark = pytest.mark.slurm

SWEEP = """
state: ${RUNS:-runs}/.jobs
max_jobs: 2
preamble: export DATA="$PWD/own data"
overrides:
  output.path: ${RUNS:-runs}
  dataset.name: e2e_sample
  model.name: tiny
  train.fraction: 0.01
  train.epochs: 1
  train.batch_size: 8
  logging.samples: 0
groups:
  - name: lora and rosa
    overrides: {train.lr: 1e-3}
    matrix: {fnmodel.name: [lora, rosa], fnmodel.params.rank: [4, 0.1]}
  - name: full
    after: lora and rosa
    overrides: {fnmodel.name: none}
    matrix: {seed: [0, 1]}
  - name: own
    overrides: {dataset.name: pairs, dataset.path: $DATA}
  - name: own again
    after: own
    overrides: {dataset.name: pairs, dataset.path: $DATA, seed: 1}
  - name: long
    overrides: {fnmodel.name: lora, train.epochs: 24}
  - name: stuck
    resources: {time: 1}
    paralleljobs: ["trap '' USR1 TERM; sleep 300"]
  - name: limited
    resources: {time: 1}
    save_before: 30
    paralleljobs: [python -I -S steps.py one, python -I -S steps.py two]
  - name: plain
    resources: {time: 1}
    paralleljobs: ["sleep 40; echo through"]
  - name: large
    resources: {mem: 100G, comment: 'a "b" c'}
    overrides: {seed: 9}
"""
# Stands in for a training that needs more than one time limit: it goes on until it is warned, saves, and has little
# left to do when it comes back. SLURM warns up to a minute earlier than asked for: 0 to 30 seconds after the start.
STEPS = """
import signal, sys, time
from pathlib import Path
stop = []
signal.signal(signal.SIGUSR1, lambda n, f: stop.append(n))
file = Path(sys.argv[1])
if file.exists():
    file.write_text(file.read_text() + " and resumed")
    sys.exit(0)
for step in range(100):
    time.sleep(0.5)
    if stop:
        file.write_text(f"saved at step {step}")
        sys.exit(75)
"""


# A search whose trials take no time: the loss is a function of the rate, with its optimum outside of the grid.
TRAINER = """
import json, math, os, sys
from pathlib import Path
given = dict(word.split("=") for word in sys.argv[1:])
run = Path("trained", "-".join(sys.argv[1:])).absolute()
run.mkdir(parents=True)
Path(os.environ["ROSA_RUN_POINTER"]).write_text(f"{run}\\n")
loss = math.log(float(given["lr"]) / 0.03) ** 2
(run / "run.json").write_text(json.dumps({"status": "finished", "best": {"loss": loss}}))
"""
SEARCH = """
state: ${RUNS:-runs}/.jobs
groups:
  - name: find
    command: python -I -S trainer.py
    search: {keys: {lr: [0.003, 0.01]}, seed: 100, seeds: [0, 1], factor: 2}
  - name: table
    after: find
    paralleljobs: [ls trained > seen]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with blanks and a percent sign in its name, that holds the project's programs and the sweep."""
    folder = tmp_path / "my project 100%"
    folder.mkdir()
    for name in ("train.py", "compile_results.py", "configs", "utils", "rosa", "assets"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "jobs.yaml").write_text(SWEEP)
    (folder / "steps.py").write_text(STEPS)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return folder


def test_a_sweep_from_submission_to_table(cluster: str, project: Path) -> None:
    submit_all_but_the_refused()
    wait_for_the_failed()
    long = cancel_one()
    limited = wait_for_both_requeued()
    wait_for_the_rest(limited)
    for name in ("one", "two"):
        assert re.fullmatch(r"saved at step \d+ and resumed", (project / name).read_text())
    assert [job["slurm_id"] for job in statuses("--only", "limited")] == limited
    if cluster == "no accounting":
        time.sleep(25)
        assert subprocess.run(["squeue", "--noheader", "--states=all"], capture_output=True).stdout.count(b"\n") < 10
    check_that_nothing_is_sent_again()
    check_what_is_recorded()
    retry_with_the_data(project, long)
    check_the_tables()


def test_a_search_goes_on_by_itself(cluster: str, project: Path) -> None:
    """One call: each later step is sent from a node, by the job of the search."""
    (project / "jobs.yaml").write_text(SEARCH)
    (project / "trainer.py").write_text(TRAINER)
    sent = jobrunner("--fn", "jobs.yaml")
    assert sent.returncode == 0, sent.stderr
    assert "which goes on with the search" in sent.stdout
    wait_for((project / "seen").exists)
    wait_for(lambda: all(state == "done" for found in states().values() for state in found))
    runs = (project / "seen").read_text().split()
    chosen = {re.search(r"lr=([^-]+)", name)[1] for name in runs if "search" not in name}
    (rate,) = chosen
    assert 0.5 < float(rate) / 0.03 < 2 and sum("search" not in name for name in runs) == 2
    assert jobrunner("--fn", "jobs.yaml").stdout.endswith("nothing to send\n")


def submit_all_but_the_refused() -> None:
    sent = jobrunner("--fn", "jobs.yaml")
    # SLURM refuses the last group: it is no job, and the others are submitted.
    assert sent.returncode == 2
    assert "sbatch refused group large:" in sent.stderr
    assert "Memory specification can not be satisfied" in sent.stderr
    assert [line.partition(":")[0] for line in sent.stdout.splitlines()] == [
        "lora and rosa", "full", "own", "own again", "long", "stuck", "limited", "plain",
    ]  # fmt: skip
    again = jobrunner("--fn", "jobs.yaml")
    assert again.stdout == "" and "refused group large" in again.stderr
    assert states()["large"] == ["refused"]
    assert statuses("--only", "large")[0]["slurm_id"] is None
    listed = subprocess.run(["squeue", "--noheader", "--states=all", "--format=%j"], capture_output=True, text=True)
    real = [name.partition(".")[0] for name in set(listed.stdout.split()) if not name.startswith("large.")]
    assert len(real) == len(set(real)), "a group was sent twice"


def wait_for_the_failed() -> None:
    """One job fails because its data are missing, so that the job that waits for it never starts."""
    wait_for(lambda: states()["own"] == ["failed"])
    assert statuses("--only", "own")[0]["code"] == 2
    assert "own data" in statuses("--only", "own")[0]["note"]
    wait_for(lambda: states()["own again"] == ["never"])
    assert "own data" in jobrunner("--logs", "own.").stdout


def cancel_one() -> dict[str, Any]:
    """Cancel a job while it trains: it saves. Returns its status."""
    wait_for(lambda: (statuses("--only", "long")[0]["epoch"] or 0) >= 1)
    assert jobrunner("--cancel", "--only", "long").returncode == 0
    wait_for(lambda: states()["long"] == ["cancelled"])
    (long,) = statuses("--only", "long")
    record = json.loads((Path(long["run"]) / "run.json").read_text())
    assert record["status"] == "interrupted" and 1 <= long["epoch"] < 24 and long["code"] == 75
    return long


def wait_for_both_requeued() -> list[str]:
    """The jobs of an array are warned of their time limit and go back to the queue. Returns their SLURM numbers."""
    limited = [job["slurm_id"] for job in statuses("--only", "limited")]
    requeued: set[str] = set()  # not at the same time, where the second one starts late

    def both_requeued() -> bool:
        requeued.update(job["slurm_id"] for job in statuses("--only", "limited") if job["state"] == "requeued")
        return requeued == set(limited)

    wait_for(both_requeued)
    return limited


def wait_for_the_rest(limited: list[str]) -> None:
    """All others end, one of them by its time limit."""
    back: dict[str, float] = {}

    def ended() -> bool:
        found = states()
        for number, state in zip(limited, found["limited"], strict=True):
            if state != "requeued":
                back.pop(number, None)
            # SLURM lets it wait for two minutes, which is no part of the test; in the first second the node refuses it
            elif time.monotonic() - back.setdefault(number, time.monotonic()) > 5:
                subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=False)
        ended = [found[name] for name in ("limited", "stuck", "full", "plain")]
        return ended == [["done"] * 2, ["timeout"], ["done"] * 2, ["done"]]

    wait_for(ended)


def check_that_nothing_is_sent_again() -> None:
    """Neither after the end nor without the ledger."""
    first = {
        "lora and rosa": ["done"] * 4,
        "full": ["done"] * 2,
        "own": ["failed"],
        "own again": ["never"],
        "long": ["cancelled"],
        "stuck": ["timeout"],
        "limited": ["done"] * 2,
        "plain": ["done"],  # it ignored the warning
        "large": ["refused"],
    }
    assert states() == first
    assert jobrunner("--fn", "jobs.yaml").stdout == ""
    assert states() == first
    Path(os.environ["RUNS"], ".jobs/state.json").unlink()
    assert jobrunner("--fn", "jobs.yaml").stdout == ""
    assert states() == first


def check_what_is_recorded() -> None:
    for job in statuses():
        assert (job["code"] == 0) == (job["state"] == "done")
        if job["state"] == "done":
            assert job["elapsed"] > 0 or job["group"] == "limited"
        if job["state"] == "done" and job["group"] not in ("limited", "plain"):
            assert job["epoch"] == 1 and job["loss"] > 0 and Path(job["run"]).is_dir()


def retry_with_the_data(project: Path, long: dict[str, Any]) -> None:
    """Once the missing data are there, a retry finishes the failed and the cancelled jobs from where they were."""
    (project / "own data").mkdir()
    for split in ("train", "validation", "test"):
        rows = "".join(f"prompt {number},target {number}\n" for number in range(16))
        (project / "own data" / f"{split}.csv").write_text("prompt,target\n" + rows)
    text = SWEEP.partition("  - name: stuck")[0]
    (project / "jobs.yaml").write_text(text)
    retried = jobrunner("--fn", "jobs.yaml", "--retry")
    assert retried.returncode == 0, retried.stderr
    assert [line.partition(":")[0] for line in retried.stdout.splitlines()] == ["own", "own again", "long"]
    wait_for(lambda: not any(job["state"] not in ("done", "timeout") for job in statuses()))
    (finished,) = statuses("--only", "long")
    assert finished["run"] == long["run"] and finished["epoch"] == 24
    metrics = [json.loads(line) for line in (Path(long["run"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [point["step"] for point in metrics if point["split"] == "validation"]
    assert steps == sorted(set(steps)), "it went on from its checkpoint, and repeated nothing"
    assert "\nall: 1 timeout, 12 done\n" in jobrunner("-s").stdout


def check_the_tables() -> None:
    runs = os.environ["RUNS"]
    table = subprocess.run([sys.executable, "compile_results.py", runs], capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    counts = {}
    for data in ("e2e_sample", "pairs"):
        with open(Path(runs) / data / "results.csv", encoding="utf-8", newline="") as file:
            counts[data] = sum(int(row["n"]) for row in csv.DictReader(file))
    assert counts == {"e2e_sample": 4 + 2 + 1, "pairs": 2}
