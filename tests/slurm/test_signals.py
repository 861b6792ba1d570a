"""What a signal to the batch script does: who gets it, what goes back to the queue, and what is noted of the end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, start, wait_for
from utils.slurm.cluster.events import read_attempt

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
    attempt = read_attempt(project / "runs/.jobs", "t0", 0)
    assert attempt is not None
    assert (attempt.signal, attempt.requeued) == ("USR1", True)
    assert attempt.code == 75  # cat handles no signal, and so gets none


def test_a_warning_ends_nothing_that_does_not_handle_it(
    write: Callable[..., Path], project: Path, scontrol: Path
) -> None:
    """A plain command and a bash that cleans up after itself run beside a training, which saves."""
    (project / "plain.sh").write_text("trap 'touch cleaned' EXIT\nwhile [ ! -e saved ]; do sleep 0.02; done\n")
    (project / "plain.py").write_text("import os, time\nwhile not os.path.exists('saved'):\n    time.sleep(0.02)\n")
    command = "bash plain.sh & PYTHON plain.py & PYTHON sleeper.py || wait %1 && wait %2 && exit 3"
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
    wait_for(lambda: read_attempt(project / "runs/.jobs", "t0", 0).signal)  # type: ignore[union-attr]
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


@pytest.mark.parametrize("requeued", [True, False], ids=["interrupted", "failed"])
def test_a_launcher_of_several_processes_is_requeued_if_its_command_saved(
    write: Callable[..., Path], project: Path, scontrol: Path, requeued: bool
) -> None:
    """torchrun ends with 1 for any end of its processes but success."""
    end = "raise SystemExit(1)"
    if requeued:
        end = f"""
sys.path.insert(0, {str(ROOT)!r})
from utils.processes.signals import Interrupted, stop_on_signals
try:
    with stop_on_signals():
        raise Interrupted("SIGUSR1")
except SystemExit:
    sys.exit(1)
"""
    (project / "sleeper.py").write_text(SLEEPER.replace("sys.exit(75)", end))
    script = write(SLEEPERS["override"].replace("PYTHON", sys.executable))
    script.write_text(script.read_text().replace("sleep 30", "sleep 0.1"))
    process = start(script, SLURM_JOB_ID="7")
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    process.wait(60)
    attempt = read_attempt(project / "runs/.jobs", "t0", 0)
    assert attempt is not None
    assert (attempt.code, attempt.requeued, scontrol.exists()) == (75 if requeued else 1, requeued, requeued)


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
    attempt = read_attempt(project / "runs/.jobs", "t0", 0)
    assert attempt is not None
    assert (attempt.code, attempt.signal, attempt.requeued) == (75, number.name[3:], False)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("groups: [{name: g, command: 'sh -c \"touch ready; sleep 60\"; touch started'}]", 143),
        ("preamble: touch ready; sleep 1\ngroups: [{name: g, command: touch started}]", 75),
    ],
    ids=["command", "preamble"],
)
def test_what_was_stopped_does_not_go_on_with_the_next_command(
    write: Callable[..., Path], project: Path, text: str, code: int
) -> None:
    """Its success would be the job's: a cancelled job, or one of a lost node, would count as done."""
    process = start(write(text))
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == code
    assert not (project / "started").exists()


def test_a_failing_requeue_leaves_the_job_interrupted(
    write: Callable[..., Path], project: Path, scontrol: Path
) -> None:
    (project / "bin" / "scontrol").write_text("#!/bin/bash\nexit 1\n")
    process = start(write(SLEEPERS["override"].replace("PYTHON", sys.executable)), SLURM_JOB_ID="7")
    wait_for((project / "ready").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75
    assert read_attempt(project / "runs/.jobs", "t0", 0).requeued is False  # type: ignore[union-attr]


def test_an_end_at_the_moment_of_a_signal_is_not_forgotten(write: Callable[..., Path], project: Path) -> None:
    """SLURM signals a script and its command together: of a third of those that end at once bash 5.2 forgets how."""
    # the batch script passes the signal on, and a second one would end a bash that is about to exit
    (project / "command.sh").write_text(
        'trap \'trap "" TERM; exit 75\' TERM\nsleep 60 &\n: > ready\nwait $!\ntrap "" TERM\nexit 75\n'
    )
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
        assert read_attempt(project / "runs/.jobs", "t0", 0).code == 75  # type: ignore[union-attr]


def test_the_end_that_was_noted_counts_though_a_signal_killed_the_bash(
    write: Callable[..., Path], project: Path
) -> None:
    script = write("groups: [{name: g, command: exit 75}]")
    noted = 'event code "$ended"'
    assert script.read_text().count(noted) == 1
    script.write_text(script.read_text().replace(noted, f'{noted}; kill -KILL "$BASHPID"'))
    assert start(script).wait(60) == 75
    assert read_attempt(project / "runs/.jobs", "t0", 0).code == 75  # type: ignore[union-attr]
