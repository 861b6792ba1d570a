"""A fake SLURM on the PATH, a sweep file to submit, and the real cluster for tests that ask for it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jobrunner
from utils.errors import UserError
from utils.slurm import local, submit
from utils.slurm.cluster.script import batch_script
from utils.slurm.sweep.file import Group, load_sweep

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PREFIX = "rosa-slurm-"
PATIENCE = 600  # seconds; nothing on a real cluster takes more than a minute and a half unless others load the machine

# Stands in for train.py: its loss depends on method and rate, and its record is what a search reads.
TRAINER = """
import json, math, os, sys, time
from pathlib import Path
given = dict(word.split("=") for word in sys.argv[1:])
lr, seed, best = float(given["lr"]), given["seed"], {"lora": 1e-3, "rosa": 2e-2}[given["method"]]
with open("log", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
while Path("hold").exists():
    time.sleep(0.01)
if Path("unfit").exists() and lr == float(Path("unfit").read_text()):
    Path(os.environ["ROSA_RUN_POINTER"] + ".unfit").write_text("lr does not fit this model\\n")
    sys.exit(2)
Path(os.environ["ROSA_RUN_POINTER"] + ".unfit").unlink(missing_ok=True)
run = Path("runs", "-".join(sys.argv[1:])).absolute()
run.mkdir(parents=True, exist_ok=True)
Path(os.environ["ROSA_RUN_POINTER"]).write_text(f"{run}\\n")
diverged = lr > 0.1 or Path("diverge").exists() and given["method"] == "rosa"
broken = Path("break").exists() and lr == 1e-3 and Path("break").read_text() in ("", given["method"])
status = "failed" if diverged or broken else "finished"
loss = 1 + math.log(lr / best) ** 2
record = {"status": status, "best": {"loss": loss}, "diverged": diverged, "started": time.time()}
if Path("data").exists():
    inputs = {"data/train": Path("data").read_text(), "data/test": str(time.time())}
    (run / "inputs.json").write_text(json.dumps(inputs))
if Path("precision").exists():
    record["hardware"] = {"precision": Path("precision").read_text()}
if Path("settings").exists():
    (run / "config.yaml").write_text(f"lr: {lr}\\noutput: {{path: {time.time()}}}\\n" + Path("settings").read_text())
(run / "run.json").write_text(json.dumps(record))
sys.exit(status == "failed")
"""
SWEEP = """
groups:
  - {name: table, after: find, command: "cp log seen"}
  - name: find
    command: PYTHON trainer.py
    matrix: {method: [lora, rosa]}
    search: {keys: {lr: [0.001, 0.003, 0.0003]}, seed: 100, seeds: [0, 1], factor: 2}
"""


# Notes its start and end, and the most jobs that ran at once; fails where it is told to, the first time.
WORK = """
import os, sys, time
from pathlib import Path
name = sys.argv[1]
Path("running", name).touch()
time.sleep(0.3)
with open("log", "a") as log:
    log.write(f"{name} {len(os.listdir('running'))} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
Path("running", name).unlink()
if "fail" in name and not Path("failed once").exists():
    Path("failed once").touch()
    sys.exit(4)
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on the real cluster run only when asked for by name: their time limits take minutes to strike."""
    if "slurm" in (config.option.markexpr or ""):
        return
    for item in items:
        if "slurm" in item.keywords and item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.skip(reason="a real SLURM cluster is started only by -m slurm"))


@dataclass
class FakeSlurm:
    """The fake's folder, as tests see it."""

    folder: Path

    def jobs(self) -> list[dict[str, Any]]:
        """What sbatch was given, refusals included."""
        return json.loads((self.folder / "jobs.json").read_text())

    def calls(self, command: str) -> list[list[str]]:
        """The calls of one command, each as its arguments."""
        lines = (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == command]

    def set(self, number: int, task: int | None = None, **changes: Any) -> None:
        """Change a job, or one task of it: state, reason, code, start, elapsed, purged."""
        jobs = self.jobs()
        tasks = jobs[number - 1]["tasks"]
        for key in tasks if task is None else [str(task)]:
            tasks[key].update(changes)
        (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def end(self, number: int, task: int | None = None, state: str = "COMPLETED", code: str = "0:0") -> None:
        """Let a job, or one task of it, end. Its script has noted a start."""
        job = self.jobs()[number - 1]
        script = Path(job["arguments"][-1])
        for key in job["tasks"] if task is None else [task]:
            events = script.parents[1] / "events" / f"{script.stem}-{key or 0}"
            if not events.exists():
                events.write_text(f"100 start {number} node 9 0 0\n")
        reason = "None" if code == "0:0" else "NonZeroExitCode"
        self.set(number, task, state=state, code=code, reason=reason, start="2026-01-02T03:04:05", elapsed=7)

    def misbehave(self, how: str, text: str = "") -> None:
        (self.folder / how).write_text(text)

    def behave(self, how: str) -> None:
        (self.folder / how).unlink()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """The fake commands on the PATH, with no jobs yet."""
    folder = tmp_path / "fake slurm"
    folder.mkdir()
    for name in ("sbatch", "squeue", "sacct", "scancel"):
        file = folder / name
        file.write_text(f"#!{sys.executable} -S\n" + (HERE / "fake_slurm.py").read_text())
        file.chmod(0o755)
    (folder / "jobs.json").write_text("[]")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(submit, "LISTING_DELAY", 0.0)
    return FakeSlurm(folder)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, whose sweep file is jobs.yaml."""
    folder = tmp_path / "my project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Call jobrunner.py in this process: ``run("-s")`` gives code, out and err; ``run()`` sends jobs.yaml."""

    def call(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["jobrunner.py", *(arguments or ("--fn", "jobs.yaml"))])
        try:
            code, message = jobrunner.main() or 0, ""
        except UserError as error:
            code, message = 2, f"error: {error}\n"
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err + message)

    return call


@pytest.fixture
def statuses(run: Callable[..., SimpleNamespace]) -> Callable[[], dict[str, dict[str, Any]]]:
    """The status of every job by its label."""
    return lambda: {job["label"]: job for job in json.loads(run("-s", "--json").out)["jobs"]}


@pytest.fixture
def work(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose jobs run work.py; no SLURM commands, no GPUs."""
    (project / "work.py").write_text(WORK)
    (project / "running").mkdir()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(local, "_POLL", 0.02)
    return project


@pytest.fixture
def write(project: Path) -> Callable[..., Path]:
    """Expand a sweep file and write the script of its last group."""
    for name in ("events", "pointers", "logs"):
        (project / "runs" / ".jobs" / name).mkdir(parents=True)

    def make(text: str, **changes: object) -> Path:
        (project / "jobs.yaml").write_text(text)
        sweep = load_sweep(project / "jobs.yaml")
        group: Group = sweep.groups[-1]
        values = dict(group=group, jobs=group.jobs, token="t0", folder=sweep.folder, limit=None)
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


def trained(project: Path) -> list[dict[str, str]]:
    """The settings of each call of TRAINER in ``project``, in order."""
    return [dict(word.split("=") for word in line.split()) for line in (project / "log").read_text().splitlines()]


def free_ports() -> int:
    """The first of four neighbouring ports that nobody listens on."""
    for first in range(27100, 27900, 10):
        probes = [socket.socket() for _ in range(4)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no four free ports in a row")


def stop(folder: Path) -> None:
    """Stop the cluster of ``folder`` and remove it."""
    environment = {**os.environ, "SLURM_DEV_DIR": str(folder / "up")}
    subprocess.run(["bash", ROOT / "scripts/slurm_down.sh"], env=environment, timeout=PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)


def stop_leftovers() -> None:
    """Stop clusters of test runs that were killed before they could do it themselves."""
    for owner in Path("/tmp").glob(f"{PREFIX}*/owner"):
        with open(owner) as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it: its test run is dead
            stop(owner.parent)


@pytest.fixture(params=["accounting", "no accounting"])
def cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A cluster on this machine; its SLURM_CONF is set. Without accounting it forgets what ended after 20 s."""
    programs = ["munged", "slurmctld", "slurmd", "sbatch"]
    if request.param == "accounting":
        programs += ["slurmdbd", "mariadbd"]
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"SLURM is not installed (no {', '.join(missing)}): scripts/slurm_up.sh --install")
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster of this machine's own needs root")
    stop_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))  # a socket's path must be short
    folder.chmod(0o755)  # munged wants everybody to reach its socket
    settings = {
        "SLURM_DEV_DIR": str(folder / "up"),
        "SLURM_DEV_PORT": str(free_ports()),
        "SLURM_DEV_DBD": "1" if request.param == "accounting" else "0",
        "SLURM_DEV_AGE": "3600" if request.param == "accounting" else "20",
    }
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated", returncode=143))  # not without a stop
    with open(folder / "owner", "w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            up = ["bash", ROOT / "scripts/slurm_up.sh"]
            subprocess.run(up, env={**os.environ, **settings}, check=True, timeout=PATIENCE)
            monkeypatch.setenv("SLURM_CONF", str(folder / "up" / "slurm.conf"))
            yield request.param
        finally:
            stop(folder)
            signal.signal(signal.SIGTERM, before)
