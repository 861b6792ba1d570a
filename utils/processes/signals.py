"""Requests to stop: the command saves and exits with code 75. The same command then goes on from there."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from utils.processes.group import Processes

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the command stopped and saved; the same command goes on
# Names a file that a stopped command writes, because launchers of several processes do not pass on their exit code.
STOPPED_NOTE = "ROSA_STOPPED_NOTE"
SAME_PRESS = 1.0  # seconds; with torchrun one Ctrl-C arrives twice: from the terminal and from torchrun
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interrupted(BaseException):
    """A signal asked to stop. It is not an ``Exception``, so that no handler of errors catches it."""


class StopRequest:
    """Whether a signal has asked to stop, with the same answer on every process.

    A signal may reach a single process, or several at different moments. Each ``check`` sends a vote to the others in
    the background, over the CPU, and the next one reads the result. So no process waits for another or for a device.
    """

    def __init__(self, processes: Processes = Processes()) -> None:  # noqa: B008 (immutable)
        self.processes = processes
        self.signal: str | None = None
        self._pending: tuple[Any, Any] | None = None

    def check(self, *, now: bool = False) -> None:
        """Raise Interrupted on all processes or on none. Every process calls this after each batch.

        Args:
            now: wait for the votes of this call too. For use before long work, such as the end of an epoch.
        """
        if self.processes.count == 1:
            self.check_here()
            return
        self._read_vote()
        self._send_vote()
        if now:
            self._read_vote()

    def check_here(self) -> None:
        """Raise Interrupted if this process got a signal. For work of a single process."""
        if self.signal:
            raise Interrupted(self.signal)

    def _send_vote(self) -> None:
        import torch
        import torch.distributed as dist

        number = signal.Signals[self.signal].value if self.signal else 0
        vote = torch.tensor([number])
        work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self.processes.control, async_op=True)
        self._pending = (work, vote)

    def _read_vote(self) -> None:
        if self._pending is None:
            return
        work, vote = self._pending
        self._pending = None
        work.wait()
        if int(vote):
            raise Interrupted(signal.Signals(int(vote)).name)


def end_on_signals() -> None:
    """Let the same signals end the command with code 75 at once, until ``stop_on_signals`` begins.

    For the start of a command, in which it only loads libraries, and so loses nothing.
    """

    def end(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        if os.environ.get("RANK", "0") == "0":  # of the processes of torchrun the first one
            with contextlib.suppress(OSError):
                os.write(2, f"stopped by {name} before it began: run the same command again\n".encode())
            _note_stop(name)
        os._exit(EXIT_INTERRUPTED)  # an import could catch an exception

    for number in SIGNALS:
        signal.signal(number, end)


def ignore_signals() -> None:
    """Ignore the same signals. For the end of a command, which has done all of its work."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def never() -> None:
    """A check that never stops the work."""


@contextlib.contextmanager
def stop_on_signals(
    processes: Processes = Processes(),  # noqa: B008 (immutable)
    unit: str = "batch",
) -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1 (SLURM's warning) and a first Ctrl-C into a request to stop; a second Ctrl-C interrupts.

    A message acknowledges the request at once. An ``Interrupted`` that leaves the ``with`` block ends the command.

    Args:
        processes: the processes of this job.
        unit: names, in that message, the work that is completed before the stop.

    Raises:
        SystemExit: with ``EXIT_INTERRUPTED``, on all processes.
    """
    request = StopRequest(processes)
    pressed: list[float] = []

    def note(number: int, _frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if pressed and now - pressed[0] > SAME_PRESS:
                raise KeyboardInterrupt
            pressed.append(now)
        first, request.signal = request.signal is None, signal.Signals(number).name
        if first and processes.main:
            _acknowledge(request.signal, unit)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    except Interrupted as interrupt:
        if processes.main:
            print(f"stopped by {interrupt}: run the same command again to go on", file=sys.stderr)
            _note_stop(str(interrupt))
        processes.gather(None)  # a launcher stops the other processes when the first one exits
        if processes.count > 1:  # torchrun then sends SIGTERM, which must not change the others' exit codes
            before[signal.SIGTERM] = signal.SIG_IGN
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note_stop(name: str) -> None:
    """Note, for the job runner, that this command stopped and can go on."""
    path = os.environ.get(STOPPED_NOTE)
    if path:
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            file.write(f"{name}\n")


def _acknowledge(name: str, unit: str) -> None:
    """Print that a signal came. A handler must not use ``sys.stderr``, which may be in the middle of a write."""
    again = "; Ctrl-C again stops at once" if name == "SIGINT" else ""
    line = f"{name}: stopping after this {unit}{again}\n"
    with contextlib.suppress(OSError):
        os.write(2, f"\n{line}".encode() if os.isatty(2) else line.encode())
