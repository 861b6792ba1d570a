"""Kills in chains: start, kill at a random moment, the same command again, until it ends; then compare."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

from scripts.faults.attempts import Clock, attempt, moment
from scripts.faults.ledger import LIVES, Laboratory, Row, say
from scripts.faults.material import CASES, ROOT, STAGES, Case, command_line, stage

MOST = {"train": 8, "eval": 2, "score": 2}  # kills of one stage of one chain, then it is left alone
FEW = {"train": 2, "eval": 1, "score": 1}  # the same for a quick look
TOLD = "the log names the checkpoint that training goes on from"


def chains(lab: Laboratory, kills: int, chance: random.Random, most: dict[str, int]) -> Counter[str]:
    """Chains over all cases until ``kills`` kills have struck; how many struck in each phase of a command's work."""
    rows = {name: lab.row(f"kill -9 of {what}", TOLD) for name, what in _WHAT.items()}
    phases: Counter[str] = Counter()
    number = 0
    while sum(row.caused for row in rows.values()) < kills or number % len(CASES):
        case = CASES[number % len(CASES)]
        lab.undisturbed(case, STAGES)
        _chain(lab, case, rows, phases, chance, most)
        number += 1
        say(f"chain {number}, {case}: {sum(row.caused for row in rows.values())} kills of {kills}")
    return phases


_WHAT = {"train": "training", "eval": "evaluation", "score": "scoring"}


def _chain(
    lab: Laboratory, case: Case, rows: dict[str, Row], phases: Counter[str], chance: random.Random, most: dict[str, int]
) -> None:
    out = lab.place("killed")
    for name in STAGES:
        row, struck = rows[name], 0
        for _ in range(LIVES):
            kill = moment(chance, lab.whole[case, name]) if struck < most[name] else None
            ended = attempt(stage(name, case, lab.data, out), out, kill)
            if ended.killed:
                struck += 1
                row.caused += 1
                phases[f"{name}: {ended.phase}"] += 1
                lab.check_wreck(row, case, out, ended)
            else:
                break
        if ended.code != 0:
            row.note("lost", f"{case} in {out} after {struck} kills, code {ended.code}: {ended.output[-800:]}")
            return
    lab.compare(rows["train"], case, out, "score")


# -- the real command lines ----------------------------------------------------------------------------------

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command_lines(lab: Laboratory, kills: int, chance: random.Random) -> None:
    """The same with train.py, eval.py and eval.sh themselves, until ``kills`` have struck work under way."""
    row = lab.row("kill -9 of train.py, eval.py and eval.sh as typed", TOLD)
    lives: dict[str, tuple[float, float]] = {}
    number = 0
    while row.caused < kills:
        case = CASES[number % len(CASES)]
        lab.undisturbed(case, STAGES)
        out = lab.place("typed")
        for name in STAGES:
            if not _typed(lab, row, case, name, out, lives, chance):
                break
        else:
            lab.compare(row, case, out, "score")
        number += 1
        say(f"typed chain {number}, {case}: {row.caused} kills of {kills}")


def _typed(
    lab: Laboratory, row: Row, case: Case, name: str, out: Path, lives: dict[str, tuple[float, float]],
    chance: random.Random,
) -> bool:  # fmt: skip
    """Kill one typed command up to its share of times, then let it end; whether it ended well.

    ``lives``: seconds until a command is at work, and until it ends, as measured on the ones that were left alone.
    """
    for struck in range(LIVES):
        begin, end = lives.get(name, (2.0, 6.0))
        aim = chance.uniform(begin, end) if struck < max(MOST[name] // 2, 1) else None
        code, worked, output = _run_typed(command_line(name, case, lab.data, out), aim, lives, name)
        if code == 0:
            return True
        if code != -signal.SIGKILL:
            row.note("lost", f"{case}: {name} as typed ends with {code}: {output[-800:]}")
            return False
        row.caused += worked
    row.note("lost", f"{case}: {name} as typed does not end")
    return False


def _run_typed(
    command: list[str], aim: float | None, lives: dict[str, tuple[float, float]], name: str
) -> tuple[int, bool, str]:
    clock, working = Clock(), None
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while process.poll() is None:
        now = clock.look()
        if working is None and _at_work(process.pid, name):
            working = now
        if aim is not None and now >= aim:
            process.kill()
        time.sleep(0.01)
    output, _ = process.communicate()
    if process.returncode == 0 and aim is None:
        lives[name] = (working or 0.0, clock.seconds)
    return process.returncode, working is not None, output


def _at_work(process: int, name: str) -> bool:
    """Whether a typed command has begun its work: it holds its lock, or has the score's tables in memory."""
    mark = {"train": ".train.lock", "eval": ".eval.lock"}.get(name)
    try:
        if mark is None:
            return "/ROSA/" in Path(f"/proc/{process}/maps").read_text(encoding="utf-8")
        return any(mark in os.readlink(file) for file in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False
