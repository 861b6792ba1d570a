"""Commands as processes that can be disturbed: forked from this one, which has imported everything, so that a command
costs its own work only. It runs the script that a user types; an audit hook sees each operation that changes a file."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import random
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

import rosa
import utils

LAZY = (  # what the commands import when they first use it
    "hydra.main", "torch.utils.tensorboard", "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
)  # fmt: skip
CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}  # audit events
RECORD = 128  # bytes that a process writes about each operation
TRACEBACKS = ("Traceback (most recent call last)", "Error executing job")  # Python's, Hydra's
REFUSED = 2  # exit code after one message
TIMEOUT = 600  # seconds after which a command counts as hung

AtOperation = Callable[[int, str], object]  # called before each operation: its number from 1, and the file's path


def import_everything() -> None:
    """Import all that the commands need, and see that this process can be forked then."""
    own = [part.name for of in (rosa, utils) for part in pkgutil.walk_packages(of.__path__, f"{of.__name__}.")]
    for name in (name for name in (*own, *LAZY) if not name.endswith("__main__")):
        with contextlib.suppress(ImportError):  # an optional extra
            importlib.import_module(name)
    alone = len(os.listdir("/proc/self/task")) == 1
    assert alone, "threads cannot be forked safely: run the tests of faults alone, with OMP_NUM_THREADS=1"


class Kill(NamedTuple):
    """Send ``signal`` so many seconds after that operation (from 1; 0: the start); 0 seconds: just before it."""

    operation: int = 0
    seconds: float = 0.0
    signal: int = signal.SIGKILL


class Ended(NamedTuple):
    """How a command ended: its exit code (of a signal the negative number), and the file of each operation."""

    code: int
    output: str
    seconds: float
    files: list[str]

    def check(self, *words: str, code: int = REFUSED) -> None:
        """Assert that it ended with this code, and said all ``words``."""
        assert self.code == code, f"ends with {self.code}, not {code}: {self.output[-1500:]}"
        missing = [word for word in words if word not in self.output]
        assert not missing, f"says nothing of {', '.join(missing)}: {self.output[-1500:]}"

    def operations(self, file: str) -> list[int]:
        """The numbers of the operations on ``file``, from 1."""
        return [number for number, name in enumerate(self.files, 1) if name == file]

    def random_operation(self, chance: random.Random) -> int:
        """Half of the time any operation, half of the time one on a file that is drawn first."""
        of_file = self.operations(chance.choice(sorted(set(self.files))))
        return chance.choice(chance.choice([range(1, len(self.files) + 1), of_file]))

    def random_kill(self, chance: random.Random) -> Kill:
        """A moment in a command like this: half of them by the clock, a quarter just before an operation."""
        if chance.random() < 0.5:
            return Kill(seconds=chance.uniform(0, self.seconds))
        return Kill(self.random_operation(chance), chance.choice((0, chance.expovariate(100))))


class Command(ForkProcess):
    """A command under way: a script's path or a module's name, then its arguments. Operations on files below
    ``folder`` count; before each ``at`` is called in the command's process, and what it raises the operation raises."""

    def __init__(self, words: list[str], folder: Path, at: AtOperation | None = None, kill: Kill | None = None) -> None:
        super().__init__()
        self.words, self.folder, self.at, self.signalled = words, str(folder), at, kill or Kill(seconds=float("inf"))
        self._output, self._trace = os.memfd_create("output"), os.memfd_create("trace")
        self.begun = time.monotonic()
        self.start()

    def run(self) -> None:
        """What the new process does."""
        for descriptor, file in enumerate((os.open(os.devnull, os.O_RDONLY), self._output, self._output)):
            os.dup2(file, descriptor)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", errors="backslashreplace") for n in (1, 2))
        torch.set_num_threads(1)  # renews PyTorch's thread pool, which two threads could not do at once
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a test of this process may have left a handler
        sys.argv = self.words
        sys.addaudithook(self._hook())
        run = runpy.run_path if self.words[0].endswith(".py") else runpy.run_module
        run(self.words[0], run_name="__main__")

    def _hook(self) -> Callable[[str, tuple[Any, ...]], None]:
        count, kill = 0, self.signalled

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            flags = arguments[2] if event == "open" else 0
            writes = event in CHANGES or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
            path = os.fsdecode(arguments[0]) if writes and isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
            if not path.startswith(self.folder):
                return
            count += 1
            os.write(self._trace, _kind(path[len(self.folder) :]).encode()[:RECORD].ljust(RECORD))
            if count == kill.operation and not kill.seconds:
                os.kill(os.getpid(), kill.signal)
            if self.at is not None:
                self.at(count, path)

        return hook

    def wait(self) -> Ended:
        """Wait for the end, and send the signal at its moment. It must not hang, nor print a traceback."""
        kill, due = self.signalled, None
        sent = bool(kill.operation and not kill.seconds)  # by the process itself
        while self.exitcode is None:
            now = time.monotonic()
            if due is None and os.fstat(self._trace).st_size >= RECORD * kill.operation:
                due = now + kill.seconds
            if now > self.begun + TIMEOUT:
                self.kill()
            elif not sent and due is not None and now >= due:
                os.kill(self.pid, kill.signal)
                sent = True
            time.sleep(0.001)
        seconds = time.monotonic() - self.begun
        output, trace = (os.pread(file, 1 << 26, 0).decode(errors="replace") for file in (self._output, self._trace))
        os.close(self._output), os.close(self._trace)
        assert seconds < TIMEOUT, f"{self.words} hangs after {output[-1500:]}"
        assert not any(sign in output for sign in TRACEBACKS), f"{self.words}: {output[-1500:]}"
        files = [trace[at : at + RECORD].strip() for at in range(0, len(trace), RECORD)]
        return Ended(self.exitcode, output, seconds, files)


def _kind(path: str) -> str:
    """What a path below an output folder stands for: ``run.json`` for its temporary file too, ``checkpoints`` ..."""
    parts = os.path.normpath(path).strip("/").split("/")[2:]
    name = re.sub(r"^\.(.*)\.[a-z0-9_]{8}$", r"\1", parts[0]) if parts else "the run's folder"
    return "TensorBoard" if name.startswith("events.out") else name


def fail(error: int, number: int = 0, name: str = "") -> AtOperation:
    """Let operations from ``number`` on fail with an ``errno`` if their file's name begins with ``name``."""

    def at(count: int, path: str) -> None:
        if count >= number and os.path.basename(path).startswith(name):
            raise OSError(error, os.strerror(error), path)

    return at


TAKEN: list[bytearray] = []


def limit_memory(_count: int, path: str) -> None:
    """From an operation on run.json on no block of 256 KiB is to be had: free ones are taken, no new ones are given."""
    if "run.json" in os.path.basename(path):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), -1))
        with contextlib.suppress(MemoryError):
            while True:
                TAKEN.append(bytearray(1 << 18))
