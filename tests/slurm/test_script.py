"""The batch script, run by bash: quoting, each command in its own place, its own notes, and what bash cannot read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import start
from utils.slurm.cluster.events import read_attempt
from utils.slurm.cluster.script import TEMPLATE, last_words, shell_problems
from utils.slurm.sweep.file import load_sweep


def test_directives(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_ACCOUNT", "lab a")
    monkeypatch.delenv("NO_PARTITION", raising=False)
    text = """
    max_jobs: 2
    save_before: 60
    groups:
      - name: GPT 2
        preamble: ["#!/bin/bash", "#SBATCH --gres=gpu:2", module load x]
        resources: {cpus_per_task: 4, account: $MY_ACCOUNT, partition: "${NO_PARTITION:-}", exclusive: true, nice: null}
        matrix: {seed: [0, 1, 2]}
    """
    lines = write(text, limit=2).read_text().splitlines()
    state = Path.cwd() / "runs/.jobs"
    directives = [line for line in lines if line.startswith(("#!", "#SBATCH"))]
    assert directives == [
        "#!/bin/bash",
        "#SBATCH --gres=gpu:2",
        "#SBATCH --job-name=GPT-2.t0",
        f'#SBATCH --output="{state}/logs/t0-%a.log"',
        "#SBATCH --open-mode=append",
        f'#SBATCH --chdir="{Path.cwd()}"',
        "#SBATCH --array=0-2%2",
        '#SBATCH --account="lab a"',
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --exclusive",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR1@60",
    ]
    assert lines.index("module load x") > lines.index("set -m  # gives the command a process group of its own")


@pytest.mark.tools
def test_shellcheck_passes_the_template_and_a_whole_script(write: Callable[..., Path]) -> None:
    """The template itself, and what becomes of it: the text of an array and of a single job."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    sweep = "groups: [{name: g, preamble: export A=1, paralleljobs: [echo one, echo two]}]"
    for file in (TEMPLATE, write(sweep), write(sweep, array=False)):
        done = subprocess.run(["shellcheck", file], capture_output=True, text=True)
        assert done.stdout + done.stderr == ""


def test_no_place_of_the_template_stays_empty_and_no_value_is_taken_for_one(write: Callable[..., Path]) -> None:
    script = write("preamble: '# @token@'\nparalleljobs: [echo @task@ one, echo two]").read_text()
    assert re.findall(r"@([a-z_]+)@", script) == ["token", "task"]


def test_every_argument_arrives_as_it_was_given(write: Callable[..., Path], project: Path) -> None:
    (project / "show.py").write_text("import sys; print(*sys.argv[1:], sep='\\n')")
    text = f"""
    command: {sys.executable} show.py
    preamble: export STAGED="$SLURM_TMPDIR/e2e data"
    groups:
      - name: g
        overrides:
          a: "it's a \\"test\\", [with] {{braces}} (and) blanks\\\\"
          b: $SLURM_TMPDIR/e2e data
          c: $STAGED
          d: [c_attn, "h.*(1|2)"]
          e: 'no $(id) or `id` !'
          f: 1e-3
    """
    done = start(write(text), SLURM_TMPDIR="/tmp/it is")
    assert done.communicate()[0].splitlines() == [
        "a='it\\'s a \"test\", [with] {braces} (and) blanks\\\\'",
        "b='/tmp/it is/e2e data'",
        "c=/tmp/it is/e2e data",
        "d=[c_attn,'h.*(1|2)']",
        "e='no $(id) or `id` !'",
        "f=0.001",
    ]
    assert done.returncode == 0


def test_a_command_has_places_for_programs_without_hydra(write: Callable[..., Path]) -> None:
    text = """
    groups:
      - name: g
        command: printf '%s\\n' --y {y} --n={n} ${n} {other}
        matrix: {y: ["p q's"], n: [1e-3], x: [a b]}
    """
    assert start(write(text)).communicate()[0].splitlines() == [
        "--y", "p q's", "--n=0.001", "{other}", "x='a b'"
    ]  # fmt: skip


def test_each_task_runs_its_own_command_and_notes_how_it_ended(write: Callable[..., Path], project: Path) -> None:
    lists = """'echo two; exit 3', kill -9 $BASHPID, "echo three\\n(exit 4)\\necho four" """
    script = write(f"groups: [{{name: g, paralleljobs: [echo one, {lists}]}}]")
    state = project / "runs/.jobs"
    for task, code, output in [(0, 0, "one\n"), (1, 3, "two\n"), (3, 4, "three\n")]:
        before = int(time.time())
        process = start(script, SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_JOB_ID="41", SLURM_JOB_ID="43")
        assert process.communicate()[0] == output
        assert process.returncode == code
        attempt = read_attempt(state, "t0", task)
        assert attempt is not None
        assert (attempt.job, attempt.code, attempt.signal, attempt.host) == ("41", code, None, os.uname().nodename)
        assert before <= attempt.started <= attempt.ended <= time.time()  # type: ignore[operator]
    assert read_attempt(state, "t0", 2) is None
    assert start(script, ROSA_TASK="2").wait() == 137
    assert read_attempt(state, "t0", 2).code == 137  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("bash -c 'exit 3' | cat", 3),
        ("kill -HUP $BASHPID; echo after", 129),
        ("kill -SEGV $BASHPID; echo after", 139),
        ("ulimit -f 1; for i in {1..3000}; do echo $i; done > file; echo after", 153),
        ("bash -c 'kill -9 $$'", 137),
    ],
)
def test_no_failure_is_called_done(write: Callable[..., Path], project: Path, command: str, code: int) -> None:
    process = start(write(json.dumps({"paralleljobs": [command]})))
    log = project / "log"
    log.write_text(f"before\n{process.communicate()[0]}")
    assert process.returncode == code and read_attempt(project / "runs/.jobs", "t0", 0).code == code  # type: ignore[union-attr]
    assert last_words(log) == "before"


def test_a_single_job_is_no_task_of_the_array_it_was_sent_from(write: Callable[..., Path], project: Path) -> None:
    script = write("groups: [{name: g, command: echo me}]")
    process = start(script, SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_JOB_ID="41", SLURM_JOB_ID="43")
    assert process.communicate()[0] == "me\n"
    assert read_attempt(project / "runs/.jobs", "t0", 0).job == "43"  # type: ignore[union-attr]


def test_the_command_is_told_where_to_name_its_run(write: Callable[..., Path], project: Path) -> None:
    script = write("groups: [{name: g, command: 'echo my run > \"$ROSA_RUN_POINTER\"'}]")
    job = load_sweep(project / "jobs.yaml").jobs[0]
    assert start(script).wait() == 0
    assert (project / "runs/.jobs/pointers" / job.id).read_text() == "my run\n"


def test_markers_skip_what_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    file = tmp_path / "events" / "t-0"
    assert read_attempt(tmp_path, "t", 0) is None
    file.write_text("100 star")
    assert read_attempt(tmp_path, "t", 0) is None
    file.write_text("100 start 7 node 12 0 500\n160 signal USR1\n161 exit 75 USR1\n161 requeue\n162 signal TERM\n")
    first = read_attempt(tmp_path, "t", 0)
    assert first is not None and first.requeued and first.code == 75 and first.signal == "USR1"
    file.write_text(file.read_text() + "300 start 7 other 13 1 900\n310 exi")
    second = read_attempt(tmp_path, "t", 0)
    assert second is not None
    assert (second.host, second.code, second.signal) == ("other", None, None)
    assert not second.requeued


def test_a_command_stays_in_its_own_place(write: Callable[..., Path]) -> None:
    text = """
    paralleljobs:
      - "echo one ;; 1) echo stolen"
      - |-
        a=1
          echo "$a and 'two'" # end
        cat <<END
        here
        END
      - "unset command; exit 4"
    """
    script = write(text)
    for task, code, output in [("1", 0, "1 and 'two'\nhere\n"), ("2", 4, "")]:
        process = start(script, ROSA_TASK=task)
        assert (process.communicate()[0], process.returncode) == (output, code)
    process = start(script, ROSA_TASK="0")
    assert "syntax error" in process.communicate()[0] and process.returncode != 0
    assert not re.search(r"^\s+$", script.read_text(), re.M)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "paralleljobs: [echo a, 'echo one ;; 1) echo stolen']",
            "group jobs: echo one ;; 1) echo stolen: syntax error",
        ),
        ("paralleljobs: ['echo it''s']", "group jobs: echo it's: unexpected EOF while looking for matching"),
        ("groups: [{name: g, command: 'true )', matrix: {a: [1, 2, 3]}}]", "group g: command: syntax error"),
        ("groups: [{name: g, preamble: ') (', command: 'true'}]", "group g: preamble: syntax error"),
        ("groups: [{name: g, preamble: 'cat <<END', command: 'true'}]", "group g: preamble: warning: here-document"),
        ("groups: [{name: g, preamble: 'export A=\\', command: 'true'}]", "group g: preamble: syntax error"),
    ],
)
def test_what_bash_cannot_read_is_found_before_it_is_sent(project: Path, text: str, words: str) -> None:
    (project / "jobs.yaml").write_text(text)
    (problem,) = shell_problems(load_sweep(project / "jobs.yaml").groups)
    assert problem.startswith(words)


def test_what_bash_can_read_is_no_problem(project: Path) -> None:
    text = """
    preamble: ["#!/bin/bash", if true; then echo; fi]
    paralleljobs: ["a='é ;;' # )", "cat <<E\nx"]
    groups: [{name: g, command: "! true", matrix: {a: ["it's", "b;)"]}}]
    """
    (project / "jobs.yaml").write_text(text)
    assert shell_problems(load_sweep(project / "jobs.yaml").groups) == []
