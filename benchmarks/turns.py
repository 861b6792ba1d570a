"""Processes that train in turn, so that each round measures all of them under the same conditions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.row import ROOT
from benchmarks.ways import Task
from utils.errors import UserError


class Trainer:
    """A process that trains one way, as ``benchmarks.ways`` says.

    Args:
        command: a list of words, or a line for the shell.

    Attributes:
        ready: what it says once it can start.
    """

    def __init__(self, command: str | list[str], task: Task) -> None:
        self.name = task.way
        self.process = subprocess.Popen(
            command, shell=isinstance(command, str), cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ready = self.ask(json.dumps(dataclasses.asdict(task)))

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and read the answer. Raises UserError if the process ends instead."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)
            for answer in self.process.stdout:
                if answer.startswith("{"):
                    found: dict[str, Any] = json.loads(answer)
                    return found
        self.close()
        raise UserError(f"{self.name}: its process ended with exit code {self.process.returncode}: see its messages")

    def close(self) -> None:
        """End its input, and wait for its end."""
        with contextlib.suppress(BrokenPipeError), self.process:
            pass


@dataclasses.dataclass
class Turns:
    """What a way did in its turns: what it said when it was ready, seconds by round and batch, and peak memory in MiB.

    ``peak_mib`` is that of the last turn; None if it does not say.
    """

    ready: dict[str, Any]
    seconds: list[list[float]]
    peak_mib: float | None = None


def take_turns(commands: dict[str, str | list[str]], task: Task, count: int, rounds: int) -> dict[str, Turns]:
    """Let each way train on the batches 0 to ``count`` - 1 in each round, after batch ``count`` as a warm-up.

    Every other round has the opposite order. A process lives for one turn, so that no two share the memory. Losses are
    compared in the first round alone.
    """
    found: dict[str, Turns] = {}
    for number in range(rounds):
        for name in list(commands)[:: 1 if number % 2 == 0 else -1]:
            own = dataclasses.replace(task, way=name, check=task.check if number == 0 else [])
            with contextlib.closing(Trainer(commands[name], own)) as started:
                turns = found.setdefault(name, Turns(started.ready, []))
                started.ask(str(count))
                times = []
                for batch in range(count):
                    start = time.perf_counter()
                    answer = started.ask(str(batch))
                    times.append(round(time.perf_counter() - start, 4))
            print(f"round {number + 1}/{rounds}, {name}: {sum(times):.2f} s", file=sys.stderr, flush=True)
            turns.seconds.append(times)
            turns.peak_mib = answer.get("peak_mib")
    return found
