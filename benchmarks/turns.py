"""Processes that train in turn, so that each round measures all of them under the same conditions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.row import ROOT
from benchmarks.ways import Task
from utils.errors import UserError


class Trainer:
    """A process that trains one way, as ``benchmarks.ways`` says.

    Args:
        command: a list of words, or a line for the shell.

    Attributes:
        ready: what it says once it can start, after ``prepare``.
    """

    ready: dict[str, Any]

    def __init__(self, name: str, command: str | list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, shell=isinstance(command, str), cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def prepare(self, task: Task) -> None:
        """Tell it what to train, and wait until it can start."""
        self.ready = self.ask(json.dumps(dataclasses.asdict(dataclasses.replace(task, way=self.name))))

    def tell(self, line: str) -> None:
        """Send a line. Raises UserError if the process has ended."""
        assert self.process.stdin is not None
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and read the answer. Raises UserError if the process ends instead."""
        self.tell(line)
        assert self.process.stdout is not None
        for answer in self.process.stdout:
            if answer.startswith("{"):
                found: dict[str, Any] = json.loads(answer)
                return found
        raise self._ended()

    def close(self) -> None:
        """End its input, and wait for its end."""
        with contextlib.suppress(BrokenPipeError), self.process:
            pass

    def _ended(self) -> UserError:
        self.close()
        return UserError(f"{self.name}: its process ended with exit code {self.process.returncode}: see its messages")


def take_turns(
    trainers: Sequence[Trainer], count: int, rounds: int
) -> tuple[dict[str, list[list[float]]], dict[str, float | None]]:
    """Let each way train on the batches 0 to ``count`` - 1 in each round, after batch ``count`` as a warm-up.

    Every other round has the opposite order. Those whose turn it is not wait for a line, and compute nothing.

    Returns:
        Seconds by way, round and batch; and the peak memory in MiB by way, None where it does not say.
    """
    seconds: dict[str, list[list[float]]] = {trainer.name: [] for trainer in trainers}
    peaks: dict[str, float | None] = {}
    for number in range(rounds):
        for trainer in trainers[:: 1 if number % 2 == 0 else -1]:
            trainer.ask(str(count))
            times = []
            for batch in range(count):
                start = time.perf_counter()
                answer = trainer.ask(str(batch))
                times.append(round(time.perf_counter() - start, 4))
            trainer.tell("rest")
            seconds[trainer.name].append(times)
            peaks[trainer.name] = answer.get("peak_mib")
    return seconds, peaks
