"""The state file: which jobs were handed over under which name, written before they are handed over.

Folder layout, beside the runs::

    state.json           the submissions, and refusals to show; where it is missing, the scripts tell what was sent
    lock                 held by the one jobrunner that changes the state
    handover.lock        held by sbatch itself while it runs, even if the jobrunner that called it is dead
    scripts/<token>.sh   what was submitted
    events/<token>-<task>    what the script noted (markers.py)
    logs/<token>-<task>.log  what the job printed
    pointers/<job id>        the run directories that the job trains, one a line
    locks/<job id>           held while a job runs on this machine
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.io.files import lock, read_json, write_json
from utils.io.locks import has_process
from utils.slurm.sweep.file import Group, Job

VERSION = 1
LOCAL = "local"
PATIENCE = 3.0  # seconds
JOB_LOCK = "ROSA_JOB_LOCK"  # names a local job's lock file in the environment of its processes
LOCAL_MARK = "# run by jobrunner.py --local\n"  # ends the script of such a submission
# What is kept of a job that has ended, and its types.
SEEN: dict[str, tuple[type, ...]] = {
    "state": (str,), "code": (int, type(None)), "note": (str,), "elapsed": (int, type(None)),
}  # fmt: skip
_NAME = re.compile(r"[\w+.-]+", re.ASCII)  # of a token or a job, which name files
_FOLDERS = ("scripts", "events", "logs", "pointers", "locks")


@dataclass
class Submission:
    """One call of sbatch, or one group of jobs on this machine.

    Attributes:
        token: unique, part of SLURM's job name.
        name: SLURM's job name.
        group: the group's name.
        jobs: job ids in the order of their task numbers.
        array: whether it is a job array.
        created: seconds since the epoch when the name was written down, before sbatch was called.
        slurm_id: SLURM's number, LOCAL on this machine, None while it is not known whether SLURM has it.
        seen: states that will not change any more, by task: kept, since SLURM forgets finished jobs.
    """

    token: str
    name: str
    group: str
    jobs: list[str]
    array: bool
    created: float
    slurm_id: str | None = None
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)

    def task_id(self, task: int) -> str | None:
        """SLURM's name for one task, None while it has no number."""
        if self.slurm_id is None or self.slurm_id == LOCAL:
            return self.slurm_id
        return f"{self.slurm_id}_{task}" if self.array else self.slurm_id


@dataclass
class State:
    """The content of a state folder. Changes are kept by ``save`` and need ``changing``."""

    folder: Path
    submissions: list[Submission] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # job id: SLURM's own words
    spent: list[str] = field(default_factory=list)  # tokens that led to no job; never used again
    taken: set[str] = field(default_factory=set)  # tokens of other jobs that SLURM lists; not kept

    @classmethod
    def load(cls, folder: Path) -> State:
        """The state in ``folder``; without a state file, what its scripts say was sent, under numbers not known.

        Raises:
            UserError: the state file cannot be read or is not one.
        """
        file = folder / "state.json"
        if not file.exists():
            return cls(folder, _from_scripts(folder))
        content = read_json(file)
        try:
            if content["version"] != VERSION:
                raise UserError(f"{file} is of version {content['version']}; this jobrunner knows {VERSION}")
            submissions = [_checked(Submission(**item)) for item in content["submissions"]]
            refused, spent = content["refused"], content["spent"]
            if not isinstance(refused, dict) or not isinstance(spent, list):
                raise TypeError("refused or spent is of a wrong type")
            if not all(isinstance(text, str) for text in [*refused.values(), *spent]):
                raise TypeError("refused or spent holds what is no text")
            return cls(folder, submissions, refused, spent)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{file} is not a sweep's state ({error}). Move it away: what was sent is then read from the scripts "
                "beside it, and looked up."
            ) from None

    def save(self) -> None:
        """Write the state: all of it or, when killed, none."""
        submissions = [asdict(item) for item in self.submissions]
        content = {"version": VERSION, "submissions": submissions, "refused": self.refused, "spent": self.spent}
        write_json(self.folder / "state.json", content)

    def drop(self, submission: Submission) -> None:
        """Forget a submission that led to no job; its name is not used again."""
        self.submissions.remove(submission)
        self.spent.append(submission.token)

    def latest(self) -> dict[str, tuple[Submission, int]]:
        """Each job's newest submission and its task number there."""
        return {job: (item, task) for item in self.submissions for task, job in enumerate(item.jobs)}

    def next_token(self, group: Group, jobs: list[Job]) -> str:
        """The name of the next submission of these jobs: the same until it is written down, never used before."""
        used = {item.token for item in self.submissions}.union(self.spent, self.taken)
        used |= {path.stem for path in (self.folder / "scripts").glob("*.sh")}
        used |= {path.name.rpartition("-")[0] for path in (self.folder / "events").glob("*-*")}
        text = "\n".join([str(self.folder), group.name, *(job.id for job in jobs)])
        for attempt in range(len(used) + 1):
            token = hashlib.sha256(f"{attempt}\n{text}".encode()).hexdigest()[:10]
            if token not in used:
                break
        return token


def _checked(item: Submission) -> Submission:
    """``item`` as it is. Raises TypeError for a field of a wrong type, since a file may hold anything."""
    texts = [item.token, item.name, item.group, *(item.jobs if isinstance(item.jobs, list) else [None])]
    if not all(isinstance(text, str) for text in texts) or not all(map(_NAME.fullmatch, (item.token, *item.jobs))):
        raise TypeError("token, name, group or jobs of a submission")
    if not isinstance(item.array, bool) or not isinstance(item.created, (int, float)) or not 0 <= item.created < 2**40:
        raise TypeError(f"array or created of {item.name}")
    if item.slurm_id is not None and not re.fullmatch(rf"\d+|{LOCAL}", str(item.slurm_id)):
        raise TypeError(f"slurm_id of {item.name}")
    for entry in item.seen.values() if isinstance(item.seen, dict) else [None]:
        if not isinstance(entry, dict) or entry.keys() != set(SEEN):
            raise TypeError(f"seen of {item.name}")
        if not all(isinstance(entry[key], kinds) for key, kinds in SEEN.items()):
            raise TypeError(f"seen of {item.name}")
    return item


def _from_scripts(folder: Path) -> list[Submission]:
    """The submissions whose scripts are in ``folder``, oldest first. Their numbers are still to be found out."""
    found = []
    for path in (folder / "scripts").glob("*.sh"):
        text = path.read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^jobs=\(([\w+. -]+)\)$", text, re.M)
        if match and _NAME.fullmatch(path.stem):
            jobs = match[1].split()
            group = jobs[0].rpartition(".")[0]
            number = LOCAL if text.endswith(LOCAL_MARK) else None
            array = re.search(r"^task=0$", text, re.M) is None
            made = path.stat().st_mtime
            found.append(Submission(path.stem, f"{group}.{path.stem}", group, jobs, array, made, number))
    return sorted(found, key=lambda item: item.created)


@contextlib.contextmanager
def changing(folder: Path, patience: float | None = None) -> Iterator[State]:
    """The state in ``folder``, for this process alone to change.

    Raises:
        UserError: another process still changes it after ``patience`` seconds (PATIENCE); or the folder cannot be made.
    """
    try:
        for name in _FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the state folder {folder} cannot be made: {error}. Set state: in the sweep file.") from None
    with contextlib.ExitStack() as stack:
        end = time.monotonic() + (PATIENCE if patience is None else patience)
        while True:
            try:
                stack.enter_context(lock(folder / "lock", "managed"))
                break
            except UserError:  # --watch notes what it saw now and then, for a moment
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield State.load(folder)


@contextlib.contextmanager
def handover(folder: Path, patience: float = 120.0) -> Iterator[int]:
    """Hold the handover lock; yields the descriptor that sbatch is to inherit.

    Raises:
        UserError: an sbatch that outlived its jobrunner still runs after ``patience`` seconds.
    """
    with open(folder / "handover.lock", "a") as file:
        end = time.monotonic() + patience
        sbatch = ("cmdline", "\0--parsable\0", f"\0{folder}/scripts/")
        while not _locked(file.fileno(), sbatch):
            if time.monotonic() > end:
                raise UserError(f"an earlier sbatch for {folder} still runs. End it or wait for it, then call again.")
            time.sleep(0.05)
        yield file.fileno()


def is_running(folder: Path, job: str) -> bool:
    """Whether ``job`` runs on this machine: its lock is held by a process of it."""
    try:
        handle = os.open(folder / "locks" / job, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _locked(handle, ("environ", f"\0{JOB_LOCK}={folder / 'locks' / job}\0"))
    finally:
        os.close(handle)


def _locked(handle: int, holder: tuple[str, ...]) -> bool:
    """Lock ``handle`` if nobody else holds it: on a file system without locks, if no such process is there."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not has_process(*holder)
    return True
