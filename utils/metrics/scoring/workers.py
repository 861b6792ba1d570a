"""Work on independent items, spread over processes that live, and remember, as long as the object."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any

FEWEST = 100  # items; below, starting a process costs more than it saves
MOST = 4  # processes


class Workers:
    """Parts of the items, each with an object of its own: in processes forked from this one, or here.

    Args:
        build: makes a part's object from its items.
        items: what the parts are made of.
        work: called with a part's object and its inputs, one for each item; gives one output for each.
    """

    def __init__(
        self,
        build: Callable[[Sequence[Any]], Any],
        items: Sequence[Any],
        work: Callable[[Any, Sequence[Any]], list[Any]],
    ) -> None:
        self._work = work
        self._pending: list[list[Any]] = []
        self._here: Any = None
        self._parts: list[tuple[slice, Connection]] = []
        count = min(_cores(), MOST) if len(items) >= FEWEST and hasattr(os, "fork") else 1
        if count == 1:
            self._here = build(items)
            return
        context = multiprocessing.get_context("fork")
        for number in range(count):
            part = slice(number * len(items) // count, (number + 1) * len(items) // count)
            ours, theirs = context.Pipe()
            others = [connection for _, connection in self._parts] + [ours]
            process = context.Process(target=_serve, args=(theirs, others, build, items[part], work), daemon=True)
            process.start()
            # With this object, or before the interpreter ends: it would wait for a worker, which would wait for it.
            Finalize(self, process.kill, exitpriority=0)
            theirs.close()
            self._parts.append((part, ours))

    @property
    def parts(self) -> int:
        """Number of parts that are worked on at the same time."""
        return len(self._parts) or 1

    def send(self, inputs: Sequence[Any]) -> None:
        """Start the work on ``inputs``, one for each item; ``receive`` waits for it."""
        if not self._parts:
            self._pending.append(self._work(self._here, inputs))
        for part, connection in self._parts:
            connection.send(inputs[part])

    def receive(self) -> list[Any]:
        """The outputs of the oldest ``send``, in the order of the items. An error of a worker is raised here."""
        if not self._parts:
            return self._pending.pop(0)
        answers = [_answer(connection) for _, connection in self._parts]  # all of them, before any error is raised
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
    """A worker's life: until it is killed, or the other end is closed, which only works if nobody holds it open."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # all processes of a job get them: the one that gives the work decides
    for other in others:
        other.close()
    made: Any = None
    try:
        made = build(items)
    except Exception as error:
        made = error
    while True:
        try:
            inputs = connection.recv()
            try:
                answer = made if isinstance(made, Exception) else work(made, inputs)
            except Exception as error:
                answer = error
            connection.send(answer)
        except (EOFError, OSError):
            return
