"""Locks for file systems that have none: a link that names the process that holds it.

A network file system may answer flock with ENOLCK or EOPNOTSUPP. Making a link is still atomic there, for all machines.
The kernel does not remove such a link when its holder dies. The next process removes it, if it can prove the death: the
holder ran on the same machine, since the same boot, in the same PID namespace, and is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError


@contextlib.contextmanager
def link_lock(path: Path, activity: str) -> Iterator[None]:
    """Hold ``path`` by a link beside it.

    Raises:
        UserError: another process holds it, or may hold it; or the file system has no links either.
    """
    link = path.with_name(f"{path.name}.holder")
    own = _identity(os.getpid())
    while True:
        try:
            os.symlink(own, link)
            break
        except FileExistsError:
            holder = _read(link)
        except OSError as error:
            raise UserError(
                f"{path.parent} cannot be locked: its file system has neither locks nor links ({error.strerror}). "
                "Two processes could spoil each other's files there: use another folder."
            ) from None
        if holder is not None and not (_is_gone(holder) and _remove(link, holder, own)):
            raise UserError(
                f"{path.parent} is already being {activity} by {holder.partition(',')[0]}. Wait for it, or stop it "
                f"first. Its file system has no locks: if that process is gone, remove {link}*"
            )
    try:
        yield
    finally:
        if _read(link) == own:
            link.unlink(missing_ok=True)


def has_process(kind: str, *words: str) -> bool:
    """Whether a process of this machine has all of ``words`` in its ``kind``: "cmdline" or "environ"."""
    for file in Path("/proc").glob(f"[0-9]*/{kind}"):
        with contextlib.suppress(OSError):  # the process has ended, or is another user's
            text = file.read_bytes()
            if all(os.fsencode(word) in text for word in words):
                return True
    return False


def _remove(link: Path, holder: str, own: str) -> bool:
    """Remove the link of a dead ``holder``; False if another process is doing so, or died while it did.

    A second link lets only one process at a time do this, so that none removes a link that a faster one has just made.
    """
    turn = link.with_name(f"{link.name}.removal")
    try:
        os.symlink(own, turn)
    except OSError:
        return False
    try:
        if _read(link) == holder:
            link.unlink(missing_ok=True)
    finally:
        turn.unlink(missing_ok=True)
    return True


def _identity(pid: int) -> str:
    """A text that names a process uniquely among all machines and times, as far as this machine can tell."""
    return f"process {pid} on {socket.gethostname()}, {_started(pid)} {_machine()}"


def _is_gone(holder: str) -> bool:
    pid = holder.split(" ")[1] if holder.startswith("process ") else ""
    here = _started(os.getpid()) != "" and holder.endswith(f" {_machine()}")
    return here and pid.isdecimal() and holder != _identity(int(pid))


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty if there is no such process, or it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _machine() -> str:
    """This boot of the machine and the PID namespace; ``?`` if Linux does not tell them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return "?"


def _read(link: Path) -> str | None:
    try:
        return os.readlink(link)
    except OSError:
        return None
