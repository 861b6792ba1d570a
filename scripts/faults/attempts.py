"""Attempts at a command: real processes, forked from one that has imported everything, and killed for real.

A forked attempt costs its own work and not the imports. The parent has one thread, so that a fork is safe; where it is
within its work an attempt writes into shared memory, which is how a kill can be aimed and how it is told what was hit.
"""

from __future__ import annotations

import errno
import importlib
import mmap
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START = "start"  # the phase before and between the named ones: reading configuration, data, model; closing
PHASES = (  # name, module, attribute
    ("step", "utils.training.loop", "train_step"),
    ("validation", "utils.training.loop", "validate"),
    ("resample", "rosa", "Resampler.after_epoch"),
    ("checkpoint", "utils.runs.checkpoints", "save"),
    ("pruning", "utils.runs.checkpoints", "prune"),
    ("record", "utils.runs.run", "Run.update_record"),
    ("evaluation", "utils.evaluation", "_measure"),
    ("predictions", "utils.evaluation", "write_predictions"),
    ("references", "utils.metrics", "Scorer.__init__"),
    ("scoring", "utils.metrics", "Scorer.score"),
)
NAMES = (START, *(name for name, *_ in PHASES))
WRITING = ("checkpoint", "pruning", "record", "predictions", "references", "scoring")
WRITES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}  # audit events


@dataclass(frozen=True)
class After:
    """Kill so many seconds after the attempt began."""

    seconds: float


@dataclass(frozen=True)
class Within:
    """Kill so many seconds after the ``count``-th time that a phase began."""

    phase: str
    count: int
    seconds: float


@dataclass(frozen=True)
class AtOperation:
    """Kill just before the ``number``-th operation (from 1) on files: open to write, rename, link, remove ..."""

    number: int


Moment = After | Within | AtOperation


@dataclass
class Ended:
    """How an attempt ended.

    Attributes:
        code: exit code; the negative number of the signal that ended it.
        phase: where it was then.
        operations: how many operations on files it had made.
        entered: how often each phase had begun.
    """

    code: int
    phase: str
    operations: int
    seconds: float
    output: str
    entered: dict[str, int] = field(default_factory=dict)

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output


class Clock:
    """Seconds of this process's life as ``look`` sees them pass: pauses, in which the children stand still too, do not
    count (SIGSTOP by a job system, a suspended machine)."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = time.monotonic()

    def look(self) -> float:
        """The seconds up to now; to be called several times a second."""
        now = time.monotonic()
        self.seconds += min(now - self._last, 0.2)
        self._last = now
        return self.seconds


class Shared:
    """Counters in memory that parent and child share: the phase, operations on files, entries of each phase."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8 * (2 + len(NAMES)))
        self._numbers = memoryview(self._memory).cast("q")

    def reset(self) -> None:
        for index in range(len(self._numbers)):
            self._numbers[index] = 0

    @property
    def phase(self) -> int:
        return self._numbers[0]

    @phase.setter
    def phase(self, value: int) -> None:
        self._numbers[0] = value

    @property
    def operations(self) -> int:
        return self._numbers[1]

    def operate(self) -> int:
        self._numbers[1] += 1
        return self._numbers[1]

    def enter(self, phase: int) -> None:
        self._numbers[0] = phase
        self._numbers[2 + phase] += 1

    def entered(self, phase: int) -> int:
        return self._numbers[2 + phase]


SHARED = Shared()


def attempt(
    work: Callable[[], int],
    folder: Path,
    kill: Moment | None = None,
    prepare: Callable[[], None] | None = None,
    during: Callable[[int], None] | None = None,
    timeout: float = 300,
) -> Ended:
    """Fork a process that does ``work`` and exits with its result; wait for its end.

    Args:
        folder: operations on files below it count.
        kill: when to send SIGKILL.
        prepare: called in the child before the work, to plant a fault.
        during: called in the parent with the child's process id.
        timeout: seconds after which the attempt counts as hung and is killed (exit code -SIGALRM).
    """
    SHARED.reset()
    handle, name = tempfile.mkstemp(prefix="faults-output-")  # not beside the run, whose disk may be full
    os.close(handle)
    output = Path(name)
    sys.stdout.flush()
    sys.stderr.flush()
    clock = Clock()
    child = os.fork()
    if child == 0:
        _live(work, folder, output, kill, prepare)
    if during is not None:
        during(child)
    code = _wait(child, kill, clock, timeout)
    text = output.read_text(encoding="utf-8", errors="replace")
    output.unlink()
    entered = {name: SHARED.entered(index) for index, name in enumerate(NAMES)}
    return Ended(code, NAMES[SHARED.phase], SHARED.operations, clock.seconds, text, entered)


def _wait(child: int, kill: Moment | None, clock: Clock, timeout: float) -> int:
    """The exit code, with SIGKILL sent at its moment."""
    due = kill.seconds if isinstance(kill, After) else None
    while True:
        now = clock.look()
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if isinstance(kill, Within) and due is None and SHARED.entered(NAMES.index(kill.phase)) >= kill.count:
            due = now + kill.seconds
        if due is not None and now >= due:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if now > timeout:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGALRM
        time.sleep(0.0005 if isinstance(kill, Within) or due is not None else 0.005)


def _live(
    work: Callable[[], int],
    folder: Path,
    output: Path,
    kill: Moment | None,
    prepare: Callable[[], None] | None,
) -> None:
    """The child's life."""
    code = 70
    try:
        file = os.open(output, os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        _watch(folder, kill)
        if prepare is not None:
            prepare()
        code = work()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(folder: Path, kill: Moment | None) -> None:
    """Tell the phase and count the operations from here on."""
    for index, (_, module, attribute) in enumerate(PHASES, 1):
        owner: Any = importlib.import_module(module)
        *parents, name = attribute.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, _told(getattr(owner, name), index))
    stop = kill.number if isinstance(kill, AtOperation) else None

    def operation() -> None:
        if SHARED.operate() == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    on_operations(folder, operation)


def _told(function: Callable[..., Any], index: int) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        before = SHARED.phase
        SHARED.enter(index)
        try:
            return function(*arguments, **options)
        finally:
            SHARED.phase = before

    return call


def on_operations(folder: Path, act: Callable[[], None]) -> None:
    """Call ``act`` before each operation that changes files below ``folder``, for the rest of this process's life."""
    below = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "r" not in (mode or "r")
            if not writes:
                return
        elif event in WRITES:
            path = arguments[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(below):
            act()

    sys.addaudithook(hook)


def disk_full_from(folder: Path, number: int) -> None:
    """Let the ``number``-th and every later operation on files below ``folder`` fail as on a full disk."""
    left = [number]

    def fail() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    on_operations(folder, fail)


def moment(chance: random.Random, whole: Ended) -> Moment:
    """A random moment of an attempt like ``whole``: by the clock, within a phase that writes, before an operation."""
    kind = chance.random()
    if kind < 0.5:
        return After(chance.uniform(0, whole.seconds))
    if kind < 0.75:
        phase = chance.choice([name for name in WRITING if whole.entered[name]])
        return Within(phase, chance.randint(1, whole.entered[phase]), chance.expovariate(100))
    return AtOperation(chance.randint(1, max(whole.operations, 1)))
