"""The other faults of a long training, each really caused in a forked process and then mended by the same command."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.faults.attempts import Ended, attempt, disk_full_from
from scripts.faults.ledger import Laboratory, Row
from scripts.faults.material import CASES, Case, overrides, run_in, stage, train
from utils.processes.signals import EXIT_INTERRUPTED
from utils.runs import Run

REFUSED = 2  # exit code of a command that stops with one message


def told(row: Row, case: Case, ended: Ended, *words: str, code: int = REFUSED) -> None:
    """Count an end with another code than ``code``, a traceback, or a message without one of ``words``."""
    if ended.code != code:
        row.note("other", f"{case}: ends with {ended.code}, not {code}: {ended.output[-600:]}")
    elif ended.traceback:
        row.note("other", f"{case}: a traceback: {ended.output[-800:]}")
    elif missing := [word for word in words if word not in ended.output]:
        row.note("other", f"{case}: says nothing of {', '.join(missing)}: {ended.output[-600:]}")


def signals(lab: Laboratory, times: int, chance: random.Random) -> None:
    """SIGTERM, SIGUSR1 and Ctrl-C at random moments of training."""
    for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
        row = lab.row(name, f"a checkpoint, then exit code {EXIT_INTERRUPTED}; the record says interrupted")
        for number in range(times):
            case = CASES[number % len(CASES)]
            lab.undisturbed(case, ("train",))
            out = lab.place(name.lower())
            steps = lab.whole[case, "train"].entered["step"]
            at = chance.randint(1, steps - 1)
            ended = attempt(
                stage("train", case, lab.data, out), out, prepare=lambda n=name, at=at: in_step(at, _kill_self(n))
            )
            row.caused += 1
            told(row, case, ended, name, code=EXIT_INTERRUPTED)
            if ended.code == EXIT_INTERRUPTED and run_in(out).record()["status"] != "interrupted":
                row.note("other", f"{case}: its record does not say interrupted")
            lab.finish(row, case, out)


def _kill_self(name: str) -> Callable[[Any], None]:
    return lambda _trainer: os.kill(os.getpid(), signal.Signals[name])


def in_step(number: int, act: Callable[[Any], None]) -> None:
    """Let ``act`` (trainer) happen in this process before its ``number``-th optimizer step, from 1."""
    from utils.training import loop

    original, count = loop.train_step, [0]

    def step(training: Any, *arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            act(training)
        return original(training, *arguments, **options)

    loop.train_step = step


def not_finite(lab: Laboratory, times: int, chance: random.Random) -> None:
    """A gradient that becomes NaN or infinite in one step, with and without train.skip_nonfinite."""

    def poison(value: float) -> Callable[[Any], None]:
        def act(trainer: Any) -> None:
            parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
            handle = parameter.register_hook(lambda gradient: (handle.remove(), gradient * value)[1])

        return act

    stop = lab.row("a NaN or infinite gradient", "stops, names the step and what to try; the last good state stays")
    skip = lab.row("the same with train.skip_nonfinite=true", "goes on without the update, and counts it")
    for number in range(times):
        case = CASES[number % len(CASES)]
        lab.undisturbed(case, ("train",))
        out, value = lab.place("nan"), chance.choice([float("nan"), float("inf"), float("-inf")])
        at = chance.randint(1, lab.whole[case, "train"].entered["step"] - 1)
        plant = lambda value=value, at=at: in_step(at, poison(value))  # noqa: E731
        ended = attempt(stage("train", case, lab.data, out), out, prepare=plant)
        stop.caused += 1
        told(stop, case, ended, "at step", "lower train.lr", "train.skip_nonfinite=true")
        lab.finish(stop, case, out)
        out = lab.place("skip")
        words = overrides(case, lab.data, out, "train.skip_nonfinite=true")
        ended = attempt(lambda words=words: train(words), out, prepare=plant)
        skip.caused += 1
        told(skip, case, ended, code=0)
        if ended.code == 0 and run_in(out).record()["skipped_updates"] != 1:
            skip.note("changed", f"{case}: {run_in(out).record()['skipped_updates']} updates skipped for one")


def out_of_memory(lab: Laboratory, times: int, chance: random.Random) -> None:
    """An allocation that no machine can serve, in PyTorch on the CPU, as on a GPU (injected), and in Python."""

    def allocate(_trainer: Any) -> None:
        torch.empty(1 << 58)

    def gpu(_trainer: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (injected)")

    def python(_trainer: Any) -> None:
        bytearray(1 << 62)

    row = lab.row("out of memory", "stops, names the batch size, what to set, and whether the result stays the same")
    for number in range(times):
        case = CASES[number % len(CASES)]
        lab.undisturbed(case, ("train",))
        out, act = lab.place("memory"), (allocate, gpu, python)[number % 3]
        at = chance.randint(1, lab.whole[case, "train"].entered["step"] - 1)
        ended = attempt(stage("train", case, lab.data, out), out, prepare=lambda act=act, at=at: in_step(at, act))
        row.caused += 1
        told(row, case, ended, f"out of memory at step {at}", "train.batch_size=16", "train.micro_batch_size=8")
        lab.finish(row, case, out)


def unwritable(lab: Laboratory, times: int, chance: random.Random) -> None:
    """Files that cannot be opened: a folder in the place of train.log or metrics.jsonl, TensorBoard's file refused."""
    row = lab.row("an unwritable train.log", "a warning names it; training goes on")
    board = lab.row("unwritable TensorBoard files", "a warning; training goes on")
    points = lab.row("an unwritable metrics.jsonl", "stops, names the file; the same command goes on when it is mended")
    for number in range(times):
        case = CASES[number % len(CASES)]
        lab.undisturbed(case, ("train",))
        for fault, name in ((row, "train.log"), (points, "metrics.jsonl"), (board, "events.out")):
            out = lab.place("unwritable")
            folder = out / _directory(lab, case) / name
            if fault is board:
                fail = lambda out=out: _refuse(out, "events.out")  # noqa: E731
                ended = attempt(stage("train", case, lab.data, out), out, prepare=fail)
            else:
                folder.mkdir(parents=True)
                ended = attempt(stage("train", case, lab.data, out), out)
            fault.caused += 1
            if fault is points:
                told(fault, case, ended, "metrics.jsonl")
                folder.rmdir()
                lab.finish(fault, case, out)
            else:
                told(fault, case, ended, "cannot be written", "Training goes on", code=0)
                if fault is row and folder.is_dir():
                    folder.rmdir()
                    folder.touch()
                lab.compare(fault, case, out, "train", lenient=fault is board)


def _directory(lab: Laboratory, case: Case) -> Path:
    """Where a run of the case lies below its output folder."""
    out = lab.folder / "undisturbed" / f"{case.dataset}-{case.method}"
    return run_in(out).path.relative_to(out)


def _refuse(folder: Path, name: str) -> None:
    """Let every opening of files of that name below ``folder`` for writing fail in this process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], (str, bytes)) or "r" in (arguments[1] or "r"):
            return
        path = Path(os.fsdecode(arguments[0]))
        if path.is_relative_to(folder) and path.name.startswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    sys.addaudithook(hook)


def locked(lab: Laboratory, times: int, chance: random.Random) -> None:
    """A second process for a run that one is training or evaluating."""
    row = lab.row("a run that another process works on", "refused, names host and process; the other one is unharmed")
    for number in range(times):
        case, name = CASES[number % len(CASES)], ("train", "eval")[number % 2]
        lab.undisturbed(case, ("train", "eval"))
        out, seconds = lab.place("locked"), chance.uniform(0, 0.3)
        if name == "eval":
            attempt(stage("train", case, lab.data, out), out)

        def rival(child: int, case: Case = case, name: str = name, out: Path = out, seconds: float = seconds) -> None:
            mark = "trained" if name == "train" else "evaluated"
            while not (found := [*out.glob(f"*/*/.{name}.lock")]) or not found[0].read_text(encoding="utf-8"):
                time.sleep(0.005)
            time.sleep(seconds)
            os.kill(child, signal.SIGSTOP)
            second = _second(stage(name, case, lab.data, out), out)
            os.kill(child, signal.SIGCONT)
            row.caused += 1
            if second.code == 0 or f"already being {mark} by process {child} on" not in second.output:
                row.note("other", f"{case}: a second {name} ends with {second.code}: {second.output[-600:]}")

        ended = attempt(stage(name, case, lab.data, out), out, during=rival)
        told(row, case, ended, code=0)
        lab.compare(row, case, out, name)


def _second(work: Callable[[], int], out: Path) -> Ended:
    return attempt(work, out.parent / "second")


def failing_writes(lab: Laboratory, times: int, chance: random.Random) -> None:
    """From a random operation on files on, all fail as on a full disk: training, evaluation and scoring."""
    row = lab.row(
        "writes that fail (injected ENOSPC)", "stops, names the file and the reason; earlier results stay whole"
    )
    for number in range(times):
        case, name = CASES[number % len(CASES)], ("train", "train", "eval", "score")[number % 4]
        lab.undisturbed(case, ("train", "eval", "score"))
        out = lab.place("failing")
        before = {"train": (), "eval": ("train",), "score": ("train", "eval")}[name]
        for earlier in before:
            attempt(stage(earlier, case, lab.data, out), out)
        at = chance.randint(0, lab.whole[case, name].operations - 1)
        ended = attempt(stage(name, case, lab.data, out), out, prepare=lambda out=out, at=at: disk_full_from(out, at))
        row.caused += 1
        after_full_disk(lab, row, case, name, out, ended)


def after_full_disk(lab: Laboratory, row: Row, case: Case, name: str, out: Path, ended: Ended) -> None:
    """Judge a command that met a full disk, then let it go on with room."""
    if ended.traceback or ended.code not in (0, 1, REFUSED):
        row.note("other", f"{case}: {name} ends with {ended.code}: {ended.output[-800:]}")
    elif ended.code and not any(text in ended.output for text in ("No space left", "disk is full")):
        row.note("other", f"{case}: {name} does not say that the disk is full: {ended.output[-600:]}")
    elif ended.code and str(out) not in ended.output:
        row.note("other", f"{case}: {name} names no file: {ended.output[-600:]}")
    lab.check_wreck(row, case, out, ended)
    lenient = "TensorBoard" in ended.output or "train.log" in ended.output
    for stage_name in ("train", "eval", "score")[("train", "eval", "score").index(name) :]:
        again = attempt(stage(stage_name, case, lab.data, out), out)
        if again.code != 0:
            row.note("lost", f"{case}: {stage_name} with room ends with {again.code}: {again.output[-600:]}")
            return
    lab.compare(row, case, out, "score", lenient)


def interrupted(lab: Laboratory, case: Case, step: int, *more: str) -> tuple[Path, Run]:
    """A run stopped by SIGTERM after ``step`` steps; its output folder and itself."""
    lab.undisturbed(case, ("train",))
    out = lab.place("stopped")
    words = overrides(case, lab.data, out, *more)
    ended = attempt(lambda: train(words), out, prepare=lambda: in_step(step, _kill_self("SIGTERM")))
    if ended.code != EXIT_INTERRUPTED:
        raise RuntimeError(f"{case} cannot be interrupted:\n{ended.output}")
    return out, run_in(out)
