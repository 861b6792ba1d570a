"""Requests to stop that leave time for a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from utils.distributed import Processes

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: not done, run the same command again to go on
SAME_PRESS = 1.0  # seconds: torchrun passes on a Ctrl-C that the terminal has sent to its processes already


class Interrupted(Exception):
    """Training stopped at a step's end because a signal asked for it; a checkpoint was saved."""


class StopRequest:
    """Whether a signal has asked for a stop, and which."""

    def __init__(self) -> None:
        self.signal: str | None = None


@contextlib.contextmanager
def stop_on_signals(processes: Processes) -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1 (SLURM's warning) and a first Ctrl-C into a request; a second Ctrl-C interrupts."""
    request = StopRequest()
    pressed: list[float] = []

    def note(number: int, _frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if pressed and now - pressed[0] > SAME_PRESS:
                raise KeyboardInterrupt
            pressed.append(now)
        request.signal = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield request
    except SystemExit:
        if processes.count > 1:  # torchrun's SIGTERM, when the first has left, must not change how the others leave
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopVote:
    """Whether to stop at the end of this step: the same answer on every process.

    A signal may reach one process only, or two of them at different steps. Each step's votes travel in the background,
    over the CPU, and are read a step later: no process waits for another one, let alone for its device.
    """

    def __init__(self, request: StopRequest, processes: Processes) -> None:
        self.request, self.processes = request, processes
        self._pending: tuple[Any, Any] | None = None

    def after_step(self, *, now: bool) -> str | None:
        """The name of the signal to stop for, or None; every process calls this after each step.

        Args:
            now: wait for this step's votes too, where what follows takes long (an epoch's end).
        """
        if self.processes.count == 1:
            return self.request.signal
        decided = self._read()
        if decided is None:
            self._cast()
            decided = self._read() if now else None
        return decided

    def _cast(self) -> None:
        import torch
        import torch.distributed as dist

        number = signal.Signals[self.request.signal].value if self.request.signal else 0
        vote = torch.tensor([number])
        work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self.processes.control, async_op=True)
        self._pending = (work, vote)

    def _read(self) -> str | None:
        if self._pending is None:
            return None
        work, vote = self._pending
        self._pending = None
        work.wait()
        return signal.Signals(int(vote)).name if int(vote) else None
