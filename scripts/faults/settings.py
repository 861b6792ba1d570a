"""Kills under settings that the chains leave at their defaults: whatever these add to a run's state must come back."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from scripts.faults.attempts import Ended, attempt, moment
from scripts.faults.compare import differences, facts
from scripts.faults.ledger import Laboratory, Row, say
from scripts.faults.material import Case, overrides, run_in, train

SETTINGS = (  # method, overrides
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
KILLS = 3  # of each


def chains(lab: Laboratory, count: int, chance: random.Random) -> None:
    """A chain of kills under each of the first ``count`` settings, on E2E."""
    row = lab.row("kill -9 of training under other settings", "the log names the checkpoint that training goes on from")
    for method, text in SETTINGS[:count]:
        case = Case(method, "e2e_nlg")
        whole = lab.place("setting")
        first = _attempt(lab, case, whole, text)
        if first.code:
            raise RuntimeError(f"{case} with {text} fails undisturbed:\n{first.output}")
        out = lab.place("setting-killed")
        for number in range(KILLS + 1):
            ended = _attempt(lab, case, out, text, first if number < KILLS else None, chance)
            if not ended.killed:
                break
            row.caused += 1
            lab.check_wreck(row, case, out, ended)
        _compare(row, f"{case} with {text}", whole, out, ended)
    say(f"settings: {row.caused} kills")


def _attempt(
    lab: Laboratory, case: Case, out: Path, text: str, like: Ended | None = None, chance: random.Random | None = None
) -> Ended:
    words = overrides(case, lab.data, out, *text.split())
    kill = moment(chance, like) if like is not None and chance is not None else None
    return attempt(lambda: train(words), out, kill)


def _compare(row: Row, name: str, whole: Path, out: Path, ended: Ended) -> None:
    if ended.code:
        row.note("lost", f"{name} ends with {ended.code}: {ended.output[-800:]}")
        return
    try:
        different = differences(facts(run_in(whole)), facts(run_in(out)))
    except Exception as error:
        row.note("lost", f"{name} in {out}: {type(error).__name__}: {error}")
        return
    if different:
        row.note("changed", f"{name} in {out}: {'; '.join(different)}")
        return
    for done in (whole, out):
        shutil.rmtree(done.parent)
