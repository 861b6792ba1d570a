"""kill -9 at random moments; the same command again, until it ends by itself, comes to the same result."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.faults.compare import FILES
from tests.faults.lab import CASES, ROOT, STAGES, Case, Lab, Lost

pytestmark = pytest.mark.faults
TRAINING = "the log names the checkpoint that training goes on from"
REST = "the same command does the rest"
WHAT = {"train": ("training", TRAINING), "eval": ("evaluation", REST), "score": ("scoring", REST)}
MOST = {"train": 8, "eval": 2, "score": 2}  # kills of a stage in one chain, at most
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
    ("rosa", "fnmodel.rosa.level=never fnmodel.rosa.factor_split=left fnmodel.params.bias=none"),
    ("rosa", "fnmodel.rosa.sample_method=top fnmodel.params.rank=4 train.save_every=1"),
    ("rosa", "fnmodel.rosa.sample_method=bottom fnmodel.rosa.every=2 train.save_every=null"),
    ("rosa", "fnmodel.params.target_modules=[c_attn] train.optimizer=sgd train.micro_batch_size=7"),
)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_kills_in_a_chain(lab: Lab, case: Case, often: int, chance: random.Random) -> None:
    out = lab.out()
    for stage in STAGES:
        what, seen = WHAT[stage]
        row, first = lab.row(f"kill -9 of {what}", seen, 0), lab.undisturbed(case, stage).ended
        for _ in range(min(MOST[stage], often)):
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


def start(words: list[str], wait: bool = False) -> subprocess.Popen[str]:
    """A new process, with all that it prints in one pipe; ``wait``: for its good end."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, **pipes)
    output = process.communicate()[0] if wait else ""
    if wait and process.returncode:
        raise Lost(f"{words} ends with {process.returncode}: {output[-1500:]}")
    return process


def wait_for(process: subprocess.Popen[str], out: Path, pattern: str) -> None:
    """Wait until a file of the run that matches has any content, or the process ends."""
    while process.poll() is None and not any(path.stat().st_size for path in out.glob(f"*/*/{pattern}")):
        time.sleep(0.01)


@pytest.mark.parametrize("stage", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in STAGES[1:])])
def test_kill_of_a_typed_command(lab: Lab, stage: str, number: int, chance: random.Random) -> None:
    row = lab.row("kill -9 of train.py, eval.py and eval.sh as typed", REST, 0)
    case = CASES[number % len(CASES)]
    out, life = lab.before(stage, case), lab.undisturbed(case, stage).ended.seconds
    typed = ["bash", "eval.sh", str(out)] if stage == "score" else [sys.executable, *lab.words(stage, case, out)]
    process = start(typed)
    if stage != "score":  # which locks the run at its end only
        wait_for(process, out, f".{stage}.lock")
    time.sleep(chance.uniform(0, 0.7 * life))
    process.kill()
    output, _ = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), output
    row["caused"] += process.returncode != 0
    start(typed, wait=True)
    lab.finish(stage, case, out)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:3], ids="-".join)
def test_kill_of_one_of_two_processes(lab: Lab, case: Case, chance: random.Random) -> None:
    lab.row("kill -9 of one of two processes", "the other one ends too, and says so; the same command goes on")
    whole, out = lab.out(), lab.out()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start([*torchrun, *lab.words("train", case, out)])
    wait_for(process, out, "checkpoints/last/state.json")
    time.sleep(chance.uniform(0, 0.5))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(chance.choice(children)), signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode and ("another process of this job ended" in output or "Signal 9" in output), output
    for folder in (whole, out):
        start([*torchrun, *lab.words("train", case, folder)], wait=True)
    lab.finish("train", case, out, like=whole, but=(FILES,))
