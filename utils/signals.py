"""Requests to stop that leave time for a checkpoint."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: not done, run the same command again to go on


class Interrupted(Exception):
    """Training stopped at a step's end because a signal asked for it; a checkpoint was saved."""


class StopRequest:
    """Whether a signal has asked for a stop, and which."""

    def __init__(self) -> None:
        self.signal: str | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1 (SLURM's warning) and a first Ctrl-C into a request; a second Ctrl-C interrupts."""
    request = StopRequest()

    def note(number: int, _frame: object) -> None:
        if number == signal.SIGINT and request.signal:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number).name

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
