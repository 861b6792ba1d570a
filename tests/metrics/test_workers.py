"""Workers: forked processes that share the items of a metric."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from utils.errors import UserError
from utils.metrics.scoring import workers
from utils.metrics.scoring.workers import FEWEST, Workers


def test_workers_return_the_outputs_in_order_and_raise_exceptions() -> None:
    items = list(range(FEWEST))

    def work(part: list[int], inputs: list[int]) -> list[int]:
        if -1 in inputs:
            raise UserError("no")
        return [own * given for own, given in zip(part, inputs, strict=True)]

    pool = Workers(list, items, work)
    assert len(pool._parts) > 1 or len(os.sched_getaffinity(0)) == 1
    for factor in (2, 3):
        pool.send([factor] * FEWEST)
    assert pool.receive() == [2 * item for item in items]
    assert pool.receive() == [3 * item for item in items]
    pool.send([-1] * FEWEST)
    with pytest.raises(UserError, match="no"):
        pool.receive()


def test_workers_survive_a_signal_to_the_whole_job_but_not_their_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_cores", lambda: 2)
    others = set(multiprocessing.active_children())
    pool = Workers(list, range(FEWEST), lambda part, _: part)
    own = set(multiprocessing.active_children()) - others
    for number in (None, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for process in own if number else ():
            os.kill(process.pid or 0, number)
        pool.send([0] * FEWEST)
        assert pool.receive() == list(range(FEWEST))
    del pool
    for process in own:
        process.join(60)
    assert len(own) == 2 and not any(process.is_alive() for process in own)


def test_the_interpreter_does_not_wait_for_workers() -> None:
    """The worker is idle, and its owner exists until the interpreter exits."""
    code = (
        "import sys; from utils.metrics.scoring import workers; workers._cores = lambda: 2; "
        "sys.pool = workers.Workers(list, range(100), lambda part, _: part); "
        "sys.pool.send([0] * 100); print(len(sys.pool.receive()), len(sys.pool._parts))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "100 2\n" and done.returncode == 0, done.stderr
