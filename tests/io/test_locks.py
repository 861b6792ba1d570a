"""Two writers on a file system without locks: one at a time, whatever killed the one before."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from utils.errors import UserError
from utils.io.files import lock

NO_LOCKS = """
import errno, fcntl, os, signal, sys
sys.path.insert(0, {root!r})
def flock(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
from pathlib import Path
from utils.io.files import lock
with lock(Path("a.lock"), "trained"):
    {then}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system that has no locks, with links and without flock."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    return tmp_path


def other(folder: Path, then: str) -> subprocess.CompletedProcess[str]:
    """Another process that takes the lock and does something under it."""
    program = NO_LOCKS.format(root=str(ROOT), then=then)
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)


def test_one_at_a_time(folder: Path) -> None:
    with lock(folder / "a.lock", "trained"):
        done = other(folder, "print('in')")
        assert done.stdout == "" and f"is already being trained by process {os.getpid()} on" in done.stderr
        with pytest.raises(UserError, match="already being evaluated"), lock(folder / "a.lock", "evaluated"):
            pass
    assert other(folder, "print('in')").stdout == "in\n"
    with lock(folder / "a.lock", "trained"):
        pass
    assert [path.name for path in folder.iterdir()] == ["a.lock"]


def test_a_killed_holder_is_no_obstacle(folder: Path) -> None:
    assert other(folder, "os.kill(os.getpid(), signal.SIGKILL)").returncode == -signal.SIGKILL
    assert os.path.lexists(folder / "a.lock.holder")
    with lock(folder / "a.lock", "trained"):
        assert f"process {os.getpid()} on" in os.readlink(folder / "a.lock.holder")
    assert not os.path.lexists(folder / "a.lock.holder")


def test_a_holder_that_nobody_can_prove_dead_is_left_in_peace(folder: Path) -> None:
    """Of another machine, of a number used again, and one that another process is about to remove."""
    link = folder / "a.lock.holder"
    assert other(folder, "os.kill(os.getpid(), signal.SIGKILL)").returncode == -signal.SIGKILL
    dead = os.readlink(link)
    number = dead.split(" ")[1]
    link.unlink()
    link.symlink_to(dead + "0")  # the numbers of processes are another container's
    for _ in range(2):
        with (
            pytest.raises(UserError, match=f"by process {number} on .* remove .*a.lock.holder"),
            lock(folder / "a.lock", "x"),
        ):
            pass
    link.unlink()
    link.symlink_to(dead.replace(f"process {number}", f"process {os.getpid()}"))  # a number used again
    with lock(folder / "a.lock", "x"):
        pass
    link.symlink_to(dead)
    (folder / "a.lock.holder.removal").symlink_to("process 1")
    with pytest.raises(UserError, match="remove"), lock(folder / "a.lock", "x"):
        pass
    assert os.readlink(link) == dead


def test_without_links_either_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def symlink(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.symlink", symlink)
    with pytest.raises(UserError, match="neither locks nor links"), lock(folder / "a.lock", "x"):
        pass


def test_a_second_training_of_the_same_run_is_refused(folder: Path, train: Any) -> None:
    run = train("train.epochs=1")
    run.update_record(status="interrupted")
    record = run.record()
    with lock(run.path / ".train.lock", "trained"), pytest.raises(UserError, match="already being trained by process"):
        train("train.epochs=1")
    assert run.record() == record
