"""The batch script, run by bash: quoting, its own notes, signals, requeueing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.slurm.markers import read_marker
from utils.slurm.script import batch_script, shell_problems
from utils.slurm.sweep import Group, load_sweep

SLEEPER = """
import os, signal, sys, time
from pathlib import Path
stop = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda n, f: stop.append(n))
Path("ready").touch()
end = time.time() + 90
while not stop and time.time() < end:
    time.sleep(0.01)
Path("saved").write_text(str(stop[:1]))
sys.exit(75)
"""


@pytest.fixture
def write(project: Path) -> Callable[..., Path]:
    """Expand a sweep file and write the script of its last group."""
    for name in ("events", "pointers", "logs"):
        (project / "runs" / ".jobs" / name).mkdir(parents=True)

    def make(text: str, **changes: object) -> Path:
        (project / "jobs.yaml").write_text(text)
        sweep = load_sweep(project / "jobs.yaml")
        group: Group = sweep.groups[-1]
        values = dict(group=group, jobs=group.jobs, token="t0", state=sweep.state, folder=project, limit=None)
        script = batch_script(**{**values, "array": len(group.jobs) > 1, **changes})  # type: ignore[arg-type]
        file = project / "script.sh"
        file.write_text(script)
        return file

    return make


def start(script: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.Popen(
        ["bash", str(script)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean | environment
    )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


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


def test_each_task_runs_its_own_command_and_notes_how_it_ended(write: Callable[..., Path], project: Path) -> None:
    script = write("groups: [{name: g, paralleljobs: [echo one, 'echo two; exit 3', kill -9 $BASHPID]}]")
    state = project / "runs/.jobs"
    for task, code, output in [(0, 0, "one\n"), (1, 3, "two\n")]:
        before = int(time.time())
        process = start(script, SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_JOB_ID="41", SLURM_JOB_ID="43")
        assert process.communicate()[0] == output
        assert process.returncode == code
        marker = read_marker(state, "t0", task)
        assert marker is not None
        assert (marker.job, marker.code, marker.signal, marker.host) == ("41", code, None, os.uname().nodename)
        assert before <= marker.started <= marker.ended <= time.time()  # type: ignore[operator]
    assert read_marker(state, "t0", 2) is None
    assert start(script, ROSA_TASK="2").wait() == 137
    assert read_marker(state, "t0", 2).code == 137  # type: ignore[union-attr]


def test_a_single_job_is_no_task_of_the_array_it_was_sent_from(write: Callable[..., Path], project: Path) -> None:
    script = write("groups: [{name: g, command: echo me}]")
    process = start(script, SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_JOB_ID="41", SLURM_JOB_ID="43")
    assert process.communicate()[0] == "me\n"
    assert read_marker(project / "runs/.jobs", "t0", 0).job == "43"  # type: ignore[union-attr]


def test_the_command_is_told_where_to_name_its_run(write: Callable[..., Path], project: Path) -> None:
    script = write("groups: [{name: g, command: 'echo my run > \"$ROSA_RUN_POINTER\"'}]")
    job = load_sweep(project / "jobs.yaml").jobs[0]
    assert start(script).wait() == 0
    assert (project / "runs/.jobs/pointers" / job.id).read_text() == "my run\n"


@pytest.fixture
def scontrol(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An scontrol that notes its arguments and, as the real one, ends the script that called it."""
    folder = project / "bin"
    folder.mkdir()
    calls = project / "scontrol calls"
    (folder / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> "{calls}"\nkill -TERM $PPID\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (project / "sleeper.py").write_text(SLEEPER)
    return calls


SLEEPERS = {
    "override": "groups: [{name: g, command: PYTHON sleeper.py, overrides: {a: 1}, requeue: 2}]",
    "command": "groups: [{name: g, command: 'true && PYTHON sleeper.py', requeue: 2}]",
    "pipe": "groups: [{name: g, command: 'set -o pipefail; PYTHON sleeper.py | cat', requeue: 2}]",
}


@pytest.mark.parametrize("text", SLEEPERS.values(), ids=SLEEPERS.keys())
def test_the_time_limits_warning_saves_and_requeues(
    write: Callable[..., Path], project: Path, scontrol: Path, text: str
) -> None:
    script = write(text.replace("PYTHON", sys.executable))
    script.write_text(script.read_text().replace("sleep 30", "sleep 0.1"))
    process = start(script, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1")
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    process.wait(60)
    assert (project / "saved").read_text() == f"[{int(signal.SIGUSR1)}]"
    assert scontrol.read_text() == "requeue 7\n"
    marker = read_marker(project / "runs/.jobs", "t0", 0)
    assert marker is not None
    assert (marker.signal, marker.requeued) == ("USR1", True)
    assert marker.code == 75  # cat handles no signal, and so gets none


def test_a_warning_ends_nothing_that_does_not_handle_it(
    write: Callable[..., Path], project: Path, scontrol: Path
) -> None:
    """A plain command and a bash that cleans up after itself run beside a training, which saves."""
    (project / "plain.sh").write_text("trap 'touch cleaned' EXIT\nwhile [ ! -e saved ]; do sleep 0.02; done\n")
    (project / "plain.py").write_text("import os, time\nwhile not os.path.exists('saved'):\n    time.sleep(0.02)\n")
    command = "bash plain.sh & PYTHON plain.py & PYTHON sleeper.py; wait %1 && wait %2 && exit 3"
    script = write(f"groups: [{{name: g, command: '{command.replace('PYTHON', sys.executable)}'}}]")
    process = start(script, SLURM_JOB_ID="7")
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 3
    assert (project / "saved").exists() and (project / "cleaned").exists()
    assert not scontrol.exists(), "it did not end with 75"


@pytest.mark.parametrize(
    "preamble", ["", "touch warn; while [ ! -e go ]; do sleep 0.02; done"], ids=["command", "preamble"]
)
def test_a_warning_waits_for_a_command_that_does_not_listen_yet(
    write: Callable[..., Path], project: Path, scontrol: Path, preamble: str
) -> None:
    early = (
        'import time; from pathlib import Path; Path("warn").touch()\nwhile not Path("go").exists(): time.sleep(0.01)\n'
    )
    (project / "sleeper.py").write_text(early + SLEEPER)
    script = write(f"preamble: '{preamble}'\n{SLEEPERS['override'].replace('PYTHON', sys.executable)}")
    script.write_text(script.read_text().replace("sleep 30", "sleep 0.1"))
    process = start(script, SLURM_JOB_ID="7")
    wait_for((project / "warn").exists)
    process.send_signal(signal.SIGUSR1)
    wait_for(lambda: read_marker(project / "runs/.jobs", "t0", 0).signal)  # type: ignore[union-attr]
    (project / "go").touch()
    process.wait(60)
    assert (project / "saved").read_text() == f"[{int(signal.SIGUSR1)}]"
    assert scontrol.read_text() == "requeue 7\n"


def test_a_task_requeues_itself_and_not_its_array(write: Callable[..., Path], project: Path, scontrol: Path) -> None:
    script = write("groups: [{name: g, paralleljobs: [echo, PYTHON sleeper.py]}]".replace("PYTHON", sys.executable))
    script.write_text(script.read_text().replace("sleep 30", "sleep 0.1"))
    # the last task that starts has the array's own number
    names = dict(SLURM_JOB_ID="7", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    process = start(script, **names)
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    process.wait(60)
    assert scontrol.read_text() == "requeue 7_1\n"


@pytest.mark.parametrize(("status", "requeued"), [("interrupted", True), ("failed", False)])
def test_a_launcher_of_several_processes_is_requeued_by_its_runs_record(
    write: Callable[..., Path], project: Path, scontrol: Path, status: str, requeued: bool
) -> None:
    """torchrun ends with 1 for any end of its processes but success."""
    end = f"""
run = Path("a run")
run.mkdir()
(run / "run.json").write_text('{{\\n  "status": "{status}",\\n  "seed": 0\\n}}\\n')
Path(os.environ["ROSA_RUN_POINTER"]).write_text(str(run.resolve()) + "\\n")
sys.exit(1)
"""
    (project / "sleeper.py").write_text(SLEEPER.replace("sys.exit(75)", end))
    script = write(SLEEPERS["override"].replace("PYTHON", sys.executable))
    script.write_text(script.read_text().replace("sleep 30", "sleep 0.1"))
    process = start(script, SLURM_JOB_ID="7")
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    process.wait(60)
    marker = read_marker(project / "runs/.jobs", "t0", 0)
    assert marker is not None
    assert (marker.code, marker.requeued, scontrol.exists()) == (75 if requeued else 1, requeued, requeued)


@pytest.mark.parametrize(
    ("number", "restarts", "job"),
    [(signal.SIGTERM, "0", "7"), (signal.SIGUSR1, "2", "7"), (signal.SIGUSR1, "0", "")],
    ids=["cancelled", "requeued often enough", "without SLURM"],
)
def test_what_is_not_requeued_saves_and_ends(
    write: Callable[..., Path], project: Path, scontrol: Path, number: signal.Signals, restarts: str, job: str
) -> None:
    script = write(SLEEPERS["override"].replace("PYTHON", sys.executable))
    process = start(script, SLURM_JOB_ID=job, SLURM_RESTART_COUNT=restarts)
    wait_for((project / "ready").exists)
    process.send_signal(number)
    assert process.wait(60) == 75
    assert (project / "saved").exists()
    assert not scontrol.exists()
    marker = read_marker(project / "runs/.jobs", "t0", 0)
    assert marker is not None
    assert (marker.code, marker.signal, marker.requeued) == (75, number.name[3:], False)


def test_what_was_stopped_does_not_go_on_with_its_next_command(write: Callable[..., Path], project: Path) -> None:
    """Its success would be the job's: a cancelled job, or one of a lost node, would count as done."""
    script = write("groups: [{name: g, command: 'touch ready; sleep 60; touch started'}]")
    process = start(script)
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not (project / "started").exists()


def test_a_stop_during_the_preamble_does_not_start_the_command(write: Callable[..., Path], project: Path) -> None:
    script = write("preamble: touch ready; sleep 5\ngroups: [{name: g, command: touch started}]")
    process = start(script)
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert not (project / "started").exists()


def test_a_failing_requeue_leaves_the_job_interrupted(
    write: Callable[..., Path], project: Path, scontrol: Path
) -> None:
    (project / "bin" / "scontrol").write_text("#!/bin/bash\nexit 1\n")
    process = start(write(SLEEPERS["override"].replace("PYTHON", sys.executable)), SLURM_JOB_ID="7")
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75
    assert read_marker(project / "runs/.jobs", "t0", 0).requeued is False  # type: ignore[union-attr]


def test_markers_skip_what_is_half_written(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    file = tmp_path / "events" / "t-0"
    assert read_marker(tmp_path, "t", 0) is None
    file.write_text("100 star")
    assert read_marker(tmp_path, "t", 0) is None
    file.write_text("100 start 7 node 12 0 500\n160 signal USR1\n161 exit 75 USR1\n161 requeue\n162 signal TERM\n")
    first = read_marker(tmp_path, "t", 0)
    assert first is not None and first.requeued and first.code == 75 and first.signal == "USR1"
    file.write_text(file.read_text() + "300 start 7 other 13 1 900\n310 exi")
    second = read_marker(tmp_path, "t", 0)
    assert second is not None
    assert (second.host, second.restarts, second.code, second.signal) == ("other", 1, None, None)
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


def test_an_end_at_the_moment_of_a_signal_is_not_forgotten(write: Callable[..., Path], project: Path) -> None:
    """SLURM signals a script and its command together: of a third of those that end at once bash 5.2 forgets how."""
    (project / "command.sh").write_text("trap 'exit 75' TERM\nsleep 60 &\n: > ready\nwait $!\nexit 75\n")
    script = write("groups: [{name: g, command: bash command.sh}]")
    for _ in range(30):
        (project / "ready").unlink(missing_ok=True)
        process = start(script)
        wait_for((project / "ready").exists)
        family = [process.pid]
        while children := Path(f"/proc/{family[-1]}/task/{family[-1]}/children").read_text().split():
            family.append(int(children[0]))
        for pid in reversed(family):
            with contextlib.suppress(ProcessLookupError):  # it ended since its child did
                os.kill(pid, signal.SIGTERM)
        assert process.wait(60) == 75
        assert read_marker(project / "runs/.jobs", "t0", 0).code == 75  # type: ignore[union-attr]
