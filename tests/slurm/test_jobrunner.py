"""The command line: one clear message for bad input, the table, logs, watching, and a thousand jobs in time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.slurm.conftest import FakeSlurm

ROOT = Path(__file__).parents[2]
Run = Callable[..., SimpleNamespace]


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (None, [], "jobs.yaml does not exist. Give the sweep's file with --fn."),
        ("a: [", [], "not valid YAML"),
        ("groups: [{name: g}]", ["-s"], "group g: has no jobs"),
        ("groups: [{name: g, matrix: {train.lrr: [1]}}]", [], "group g: train.lrr is not a key; did you mean lr?"),
        ("paralleljobs: [echo]", ["--only", "x"], "--only x: jobs.yaml has no such group; it has jobs"),
        ("paralleljobs: [echo]", ["--json"], "--json and --watch go with -s"),
        ("paralleljobs: [echo]", ["-s", "--watch", "0"], "--watch takes a number of seconds above 0"),
        ("paralleljobs: [echo]", ["-s", "--retry"], "--retry sends jobs again"),
        ("paralleljobs: [echo]", ["--local", "-1"], "--local takes a number of jobs at a time"),
        ("paralleljobs: [echo]", ["--logs", "x"], "--logs x: no jobs have this name or number: -s lists the jobs"),
        ("paralleljobs: [echo]", ["--logs", "jobs."], "is not sent and has printed nothing yet"),
        ("state: jobs.yaml/x\nparalleljobs: [echo]", [], "state='jobs.yaml/x' is no folder"),
    ],
)
def test_bad_input(
    project: Path, slurm: FakeSlurm, run: Run, text: str | None, arguments: list[str], words: str
) -> None:
    if text is not None:
        (project / "jobs.yaml").write_text(text)
    done = run(*arguments)
    assert done.code == 2 and words in done.err, done.err
    assert slurm.jobs() == [] and not (project / "runs").exists()


def test_without_slurm_the_way_out_is_named(project: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "jobs.yaml").write_text("paralleljobs: [echo]")
    monkeypatch.setenv("PATH", str(project))
    done = run()
    assert done.code == 2 and "there is no sbatch on the PATH" in done.err and "--local" in done.err
    assert not (project / "runs").exists()


def test_a_damaged_state_is_named(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text("paralleljobs: [echo]")
    run()
    file = project / "runs/.jobs/state.json"
    for damage in (b"", b"{", bytes(99), b"\xff\x00\x80", b"[" * 99_999, b"3", b"{}", b'{"version": 9}', None):
        file.unlink()
        if damage is None:
            file.mkdir()
        else:
            file.write_bytes(damage)
        done = run("-s")
        assert done.code == 2 and str(file) in done.err and "Move it away" in done.err
    file.rmdir()
    assert run().out == "nothing to send\n" and len(slurm.jobs()) == 1


def test_the_table(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text(
        "groups: [{name: g, matrix: {seed: [0, 1, 2]}}, {name: tables, after: g, command: make tables}]"
    )
    shown = run("-s").out.splitlines()
    assert shown[:3] == ["g: 3 not sent", "tables: 1 not sent", "all: 4 not sent"]
    assert len(shown) == 3 + 1 + 4, "no advice: nothing was sent yet"
    run()
    slurm.end(1, 0)
    slurm.end(1, 1, "FAILED", "3:0")
    slurm.set(2, reason="DependencyNeverSatisfied")
    shown = run("-s").out.splitlines()
    assert shown[:3] == ["g: 1 queued, 1 failed, 1 done", "tables: 1 never", "all: 1 queued, 1 never, 1 failed, 1 done"]
    assert shown[3].split() == ["job", "slurm", "state", "elapsed", "exit", "epoch", "loss", "run", "what"]
    assert shown[4].split()[1:] == ["1_0", "done", "00:00:07", "0", "-", "-", "-", "seed=0"]
    assert shown[5].split()[1:5] == ["1_1", "failed", "00:00:07", "3"]
    assert shown[7].split()[1:3] == ["2", "never"] and "what it waits for did not end well" in shown[7]
    assert shown[8] == "next: --logs JOB shows what one printed, --retry sends again the 2 that did not end well"
    assert len(run("-s", "--only", "tables").out.splitlines()) == 5
    counts = json.loads(run("-s", "--json").out)["counts"]
    assert counts == {"done": 1, "failed": 1, "queued": 1, "never": 1}


def test_control_characters_steer_no_terminal(project: Path, slurm: FakeSlurm, run: Run) -> None:
    groups = [
        {"name": "g\x1b[2J", "paralleljobs": ["echo \x1b]0;title\a"]},
        {"name": "h", "after": "g\x1b[2J", "command": "true", "matrix": {"a": ["\u202ex"]}},
    ]
    (project / "jobs.yaml").write_text(json.dumps({"groups": groups}))
    shown = [run("-s", "--only", "g\x1b[2J"), run("-s"), run(), run("-s")]
    slurm.end(1, state="FAILED", code="1:0")
    log = json.loads(run("-s", "--json").out)["jobs"][0]["log"]
    Path(log).write_text("\x1b[31mred\n")
    shown.append(run("-s"))
    said = "".join(done.out + done.err for done in shown)
    assert r"g\x1b[2J: 1 failed" in said and r"echo \x1b]0;title\x07" in said and r"\u202ex" in said
    assert all(sign.isprintable() or sign == "\n" for sign in said)


def test_a_long_name_is_cut(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text(f"groups: [{{name: {'n' * 300}, command: 'true'}}]")
    assert run().code == 0 and run("-s").code == 0
    (project / "jobs.yaml").write_text(
        f"groups: [{{name: {'n' * 300}, command: a}}, {{name: {'n' * 301}, command: a}}]"
    )
    assert "groups 1 and 2 have the same name" in run().err


def test_the_default_sweep_file_is_jobs_yaml(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text("paralleljobs: [echo a]")
    (project / "other.yaml").write_text("state: other/.jobs\nparalleljobs: [echo b, echo c]")
    run("--fn", "other.yaml")
    assert "all: 1 not sent" in run("-s").out
    assert "all: 2 queued" in run("-s", "--fn", "other.yaml").out


def test_watching_ends_when_nothing_is_left_to_wait_for(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text("paralleljobs: [echo a]")
    run()
    threading.Timer(1, slurm.end, [1]).start()
    shown = run("-s", "--watch", "0.3").out
    assert shown.count("all: 1 queued\n") >= 2 and "all: 1 done\n" in shown.rpartition("all: 1 queued")[2]


def test_logs(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text("groups: [{name: g, paralleljobs: [echo a, echo b]}]")
    run()
    for task in range(2):
        token = slurm.jobs()[0]["name"].partition(".")[2]
        (project / f"runs/.jobs/logs/{token}-{task}.log").write_text(f"output {task}\n")
    second = json.loads(run("-s", "--json").out)["jobs"][1]
    for name in (second["id"], second["id"][:6], "1_1"):
        assert run("--logs", name).out == "output 1\n"
    slurm.end(1, 1, "FAILED", "1:0")
    run("--retry")
    again = run("--logs", second["id"])
    assert again.out == "output 1\n" and "now it is queued" in again.err
    ambiguous = run("--logs", "g.")
    assert ambiguous.code == 2 and "2 jobs have this name or number" in ambiguous.err


def test_a_thousand_jobs_expand_validate_and_print_in_five_seconds(project: Path, slurm: FakeSlurm, run: Run) -> None:
    (project / "jobs.yaml").write_text(
        "groups:\n"
        + "\n".join(
            f"  - {{name: g{n}, overrides: {{model.name: gpt2, train.epochs: {n}}}, max_jobs: 8, matrix: "
            f"{{train.lr: [1e-3, 3e-4], fnmodel.params.rank: [0.1, 0.2, 3, 4, 5], seed: {list(range(25))}}}}}"
            for n in range(1, 5)
        )
    )
    import utils.slurm.sweep.overrides  # noqa: F401  (the five seconds begin after imports)

    start = time.process_time()
    done = run("--dry-run")
    assert time.process_time() - start < 5
    assert done.code == 0 and done.out.count("python train.py model.name=gpt2") == 1000
    assert done.out.count("#SBATCH --array=0-249%8") == 4


def test_a_reader_that_has_seen_enough_is_no_error(project: Path) -> None:
    (project / "jobs.yaml").write_text(f"groups: [{{name: g, command: 'true', matrix: {{a: {list(range(5000))}}}}}]")
    command = f"'{sys.executable}' '{ROOT}/jobrunner.py' -s --only g | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == "g: 5000 not sent\n" and done.stderr == ""


def test_the_command_itself(project: Path) -> None:
    done = subprocess.run([sys.executable, ROOT / "jobrunner.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for option in (
        "--fn",
        "-s",
        "--watch",
        "--json",
        "--dry-run",
        "--cancel",
        "--logs",
        "--local",
        "--only",
        "--retry",
    ):
        assert option in done.stdout
    done = subprocess.run([sys.executable, ROOT / "jobrunner.py", "-s"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: jobs.yaml does not exist")
    assert shutil.which("bash")


def test_without_words_it_sends_nothing_and_says_what_to_type(project: Path, slurm: FakeSlurm) -> None:
    (project / "jobs.yaml").write_text("paralleljobs: [echo]")
    done = subprocess.run([sys.executable, ROOT / "jobrunner.py"], capture_output=True, text=True)
    assert done.returncode == 2 and "--fn jobs.yaml sends its jobs, -s shows their status" in done.stderr
    assert slurm.jobs() == []
