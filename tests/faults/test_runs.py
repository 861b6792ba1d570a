"""Faults of runs: kill -9, signals, damaged files. The same command again, until it ends by itself, comes to the same
result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.commands import REFUSED, TIMEOUT, Command, Kill
from tests.faults.lab import CASES, FILES, INTERRUPTED, STAGES, Case, Lab, Lost, run_in
from tests.mutations import replace
from tests.processes.conftest import ENVIRONMENT, TORCHRUN, launched

pytestmark = pytest.mark.faults
TRAINING = "the log names the checkpoint that training goes on from"
REST = "the same command does the rest"
# what a user sees of a kill of each stage, and how many kills a chain has at most
KILLED = {"train": ("training", TRAINING, 8), "eval": ("evaluation", REST, 2), "score": ("scoring", REST, 2)}
SETTINGS = (  # method, overrides: whatever they add to a run's state must come back
    ("none", "train.optimizer=sgd train.momentum=0.9 train.scheduler=cosine"),
    ("none", "train.optimizer=adam train.scheduler=constant train.warmup_steps=3"),
    ("none", "train.scheduler=none train.sort_window=0 train.max_grad_norm=0.5"),
    ("none", "train.precision=bf16 train.gradient_checkpointing=true"),
    ("none", "train.micro_batch_size=5 logging.print_freq=5 train.save_every=3"),
    ("none", "train.keep_last=false train.fraction=0.6 seed=3"),
    ("lora", "fnmodel.lora.dropout=0.2 fnmodel.lora.alpha=8 fnmodel.params.bias=adapted"),
    ("lora", "train.skip_nonfinite=true train.precision=bf16"),
    ("lora", "train.save_every=null train.save_minutes=0.002"),
    ("rosa", "fnmodel.rosa.level=step fnmodel.rosa.every=4 fnmodel.rosa.optimizer_state=keep"),
    ("rosa", "fnmodel.rosa.level=step fnmodel.rosa.every=2 fnmodel.rosa.sample_method=window train.save_every=3"),
    ("rosa", "fnmodel.rosa.level=step fnmodel.rosa.every=3 fnmodel.rosa.rewarm_steps=2 fnmodel.rosa.adapt=b"),
    ("rosa", "fnmodel.rosa.level=never fnmodel.rosa.factor_split=left fnmodel.params.bias=none"),
    ("rosa", "fnmodel.rosa.sample_method=top fnmodel.params.rank=4 train.save_every=1"),
    ("rosa", "fnmodel.rosa.sample_method=bottom fnmodel.rosa.every=2 train.save_every=null"),
    ("rosa", "fnmodel.params.target_modules=[c_attn] train.optimizer=sgd train.micro_batch_size=7"),
)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_kills_in_a_chain(lab: Lab, case: Case, often: int, chance: random.Random) -> None:
    out = lab.out()
    for stage in STAGES:
        (what, seen, most), first = KILLED[stage], lab.undisturbed(case, stage).ended
        row = lab.row(f"kill -9 of {what}", seen, 0)
        for _ in range(min(most, often)):
            ended = lab.run(stage, case, out, kill=first.random_kill(chance))
            row["caused"] += ended.code != 0  # else it ended before its time
            lab.struck[f"{stage}: {['none yet', *ended.files][-1]}"] += ended.code != 0
        lab.finish(stage, case, out)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "text"), SETTINGS)
def test_kills_under_other_settings(lab: Lab, method: str, text: str, chance: random.Random) -> None:
    row, case = lab.row("kill -9 of training under other settings", TRAINING, 0), (method, "e2e_nlg")
    whole, out, more = lab.out(), lab.out(), text.split()
    first = lab.run("train", case, whole, *more)
    for _ in range(2):
        row["caused"] += lab.run("train", case, out, *more, kill=first.random_kill(chance)).code != 0
    lab.finish("train", case, out, *more, like=whole)


def start(words: list[str], out: Path, pattern: str) -> subprocess.Popen[str]:
    """A new process, its output in one pipe, when a matching file of the run has content or the process has ended."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not any(path.stat().st_size for path in out.glob(f"*/*/{pattern}")):
        time.sleep(0.01)
    return process


def do_the_rest(words: list[str]) -> None:
    """The same command in a new process again, to its good end."""
    done = launched(words, timeout=TIMEOUT)
    if done.returncode:
        raise Lost(f"{words} ends with {done.returncode}: {done.stderr[-1500:]}")


@pytest.mark.parametrize("stage", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in STAGES[1:])])
def test_kill_of_a_typed_command(lab: Lab, stage: str, case: Case, chance: random.Random) -> None:
    row = lab.row("kill -9 of train.py, eval.py and eval.sh as typed", REST, 0)
    out, life = lab.before(stage, case), lab.undisturbed(case, stage).ended.seconds
    typed = ["bash", "eval.sh", str(out)] if stage == "score" else [sys.executable, *lab.words(stage, case, out)]
    process = start(typed, out, "*" if stage == "score" else f".{stage}.lock")  # scoring takes a lock at its end only
    time.sleep(chance.uniform(0, 0.7 * life))
    process.kill()
    output, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), output
    row["caused"] += process.returncode != 0
    do_the_rest(typed)
    lab.finish(stage, case, out)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:3], ids="-".join)
def test_kill_of_one_of_two_processes(lab: Lab, case: Case, chance: random.Random) -> None:
    lab.row("kill -9 of one of two processes", "the other one ends too, and says so; the same command goes on")
    whole, out = lab.out(), lab.out()
    process = start([*TORCHRUN, *lab.words("train", case, out)], out, "checkpoints/last/state.json")
    time.sleep(chance.uniform(0, 0.5))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(chance.choice(children)), signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode and ("another process of this job ended" in output or "Signal 9" in output), output
    for folder in (whole, out):
        do_the_rest([*TORCHRUN, *lab.words("train", case, folder)])
    lab.finish("train", case, out, like=whole, but=(FILES,))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal(lab: Lab, stage: str, name: str, case: Case, chance: random.Random) -> None:
    kind, whole, out = signal.Signals[name], lab.undisturbed(case, stage).ended, lab.before(stage, case)
    if stage == "train":
        row = lab.row(name, f"a checkpoint, then exit code {INTERRUPTED}; the record says interrupted", 0)
        saves = whole.operations("checkpoints")
        ended = lab.run(stage, case, out, kill=Kill(chance.choice(saves[: len(saves) * 2 // 3]), signal=kind))
        ended.check(name, code=INTERRUPTED)
        assert json.loads((run_in(out) / "run.json").read_text())["status"] == "interrupted"
    else:
        row = lab.row(f"{name} in evaluation or scoring", "ends before its time; the same command does the rest", 0)
        ended = lab.run(stage, case, out, kill=Kill(seconds=chance.uniform(0.1, 0.8) * whole.seconds, signal=kind))
        assert ended.code in (0, INTERRUPTED, -kind, 128 + kind), ended.output
    row["caused"] += ended.code != 0
    lab.finish(stage, case, out)


def harm(path: Path, chance: random.Random) -> None:
    """Truncate a file, flip one of its bits, empty it or remove it."""
    content = path.read_bytes()
    at, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
    flipped = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
    replace(path, chance.choice([content[:at], flipped, b"", None]))


def test_a_damaged_file_of_the_last_checkpoint(lab: Lab, case: Case, chance: random.Random) -> None:
    lab.row("a damaged or missing file of the last checkpoint", "named; the checkpoint before it is used")
    out, run = lab.stopped(case, chance)
    best, last = run / "checkpoints" / "best", (run / "checkpoints" / "last").resolve()
    path = chance.choice(sorted(last.iterdir()))
    is_best, kept = best.resolve() == last, path.read_bytes()
    harm(path, chance)
    ended = lab.run("train", case, out)
    if is_best and ended.code == REFUSED:  # a part of the result is gone: only the user can say what to do
        ended.check(path.name, str(best))
        replace(path, kept)
    else:
        ended.check(path.parent.name, path.name, code=0)
    lab.finish("train", case, out)


def test_a_damaged_file_in_every_checkpoint(lab: Lab, case: Case, chance: random.Random) -> None:
    lab.row("such a file in every checkpoint", "each named; refused, never from scratch in silence")
    out, run = lab.stopped(case, chance)
    name = chance.choice(sorted(path.name for path in (run / "checkpoints" / "last").iterdir()))
    for folder in run.glob("checkpoints/step-*"):
        harm(folder / name, chance)
    before = sorted(run.glob("checkpoints/**/*"))
    lab.run("train", case, out).check(name, str(run))
    if before != sorted(run.glob("checkpoints/**/*")):
        raise Lost(f"{case}: its checkpoints are touched")


def test_a_missing_pointer(lab: Lab, case: Case, chance: random.Random) -> None:
    lab.row("a missing or dangling pointer to the last", "the newest whole checkpoint is used")
    out, run = lab.stopped(case, chance)
    (run / "checkpoints" / "last").unlink()
    if chance.random() < 0.5:
        (run / "checkpoints" / "last").symlink_to("step-99999999")
    lab.finish("train", case, out)


@pytest.mark.parametrize("stage", STAGES[:2])
def test_a_run_that_another_process_works_on(lab: Lab, stage: str, case: Case, chance: random.Random) -> None:
    lab.row("a run that another process works on", "refused, names host and process; the other one is unharmed")
    whole, out = lab.undisturbed(case, stage).ended, lab.before(stage, case)
    at = chance.randint(whole.operations(f".{stage}.lock")[0] + 1, len(whole.files))
    first = Command(lab.words(stage, case, out), out, kill=Kill(at, signal=signal.SIGSTOP))
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    second = lab.run(stage, case, out)
    os.kill(first.pid, signal.SIGCONT)
    second.check(f"process {first.pid} on", str(run_in(out)), code=1 if stage == "eval" else REFUSED)
    first.wait().check(code=0)
    lab.finish(stage, case, out)
