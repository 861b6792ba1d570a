"""A pool of forked processes for independent items.

Each process keeps its items, and what it has computed for them, as long as the pool exists.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

FEWEST = 100  # items: with fewer, starting processes takes longer than it saves
MOST = 4  # processes


class Workers:
    """Divides items into parts. Each part has an object in a forked process, or in this process if there are few items.

    Args:
        build: makes the object of a part from the items of the part.
        items: all items.
        work: computes outputs from the object of a part and its inputs, one input and one output per item.
    """

    def __init__(
        self,
        build: Callable[[Sequence[Any]], Any],
        items: Sequence[Any],
        work: Callable[[Any, Sequence[Any]], list[Any]],
    ) -> None:
        self._work = work
        self._pending: list[list[Any]] = []
        self._local: Any = None
        self._parts: list[tuple[slice, Connection]] = []
        count = min(_cores(), MOST) if len(items) >= FEWEST and hasattr(os, "fork") else 1
        if count == 1:
            self._local = build(items)
            return
        context = multiprocessing.get_context("fork")
        for number in range(count):
            part = slice(number * len(items) // count, (number + 1) * len(items) // count)
            ours, theirs = context.Pipe()
            others = [connection for _, connection in self._parts] + [ours]
            process = context.Process(target=_serve, args=(theirs, others, build, items[part], work), daemon=True)
            process.start()
            # Kill the process with this object, or before the interpreter exits: otherwise the interpreter would wait
            # for the worker, and the worker for more inputs.
            Finalize(self, process.kill, exitpriority=0)
            theirs.close()
            self._parts.append((part, ours))

    def send(self, inputs: Sequence[Any]) -> None:
        """Start to compute the outputs for ``inputs``, one per item. ``receive`` returns them."""
        if not self._parts:
            self._pending.append(self._work(self._local, inputs))
        for part, connection in self._parts:
            connection.send(inputs[part])

    def receive(self) -> list[Any]:
        """The outputs of the oldest ``send``, in the order of the items. Raises the exception of a worker."""
        if not self._parts:
            return self._pending.pop(0)
        answers = [_answer(connection) for _, connection in self._parts]  # read all answers before raising an exception
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [output for answer in answers for output in answer]


def _answer(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        return RuntimeError("a worker process ended without an answer (killed, or out of memory)")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(
    connection: Connection,
    others: list[Connection],
    build: Callable[[Sequence[Any]], Any],
    items: Sequence[Any],
    work: Callable[[Any, Sequence[Any]], list[Any]],
) -> None:
    """Run a worker until it is killed or the other end of ``connection`` is closed.

    Args:
        others: connections that fork has copied from the parent. A copy that stays open would hide that the parent has
            closed its end.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # all processes of a job get these signals; the parent handles them
    for other in others:
        other.close()
    built: Any = None
    try:
        built = build(items)
    except Exception as error:
        built = error
    while True:
        try:
            inputs = connection.recv()
            try:
                answer = built if isinstance(built, Exception) else work(built, inputs)
            except Exception as error:
                answer = error
            connection.send(answer)
        except (EOFError, OSError):
            return
