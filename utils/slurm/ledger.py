"""The ledger of a sweep: the file of its submissions, each written down before it is sent.

A sweep's folder (``state`` in the sweep file) lies beside the runs::

    state.json           the ledger: submissions, and refusals to show; the scripts give what it lacks
    lock                 held by the one jobrunner that changes the ledger
    handover.lock        held by sbatch itself while it runs, even if the jobrunner that called it is dead
    scripts/<token>.sh   what was submitted
    events/<token>-<task>    what the script noted (events.py)
    logs/<token>-<task>.log  what the job printed
    pointers/<job id>        the run directories that the job trains, one per line
    pointers/<job id>.stopped    not empty if the job's command stopped on a signal and can go on
    pointers/<job id>.unfit      why its settings do not fit the model or the data
    locks/<job id>           held while a job runs on this machine
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.io.files import lock, read_bytes, write_json
from utils.io.locks import has_process
from utils.runs import UNFIT_NOTE

if TYPE_CHECKING:
    from utils.slurm.sweep.file import Group, Job

VERSION = 1
LOCAL = "local"
PATIENCE, HANDOVER_PATIENCE = 3.0, 120.0  # seconds
JOB_LOCK = "ROSA_JOB_LOCK"  # names a local job's lock file in the environment of its processes
LOCAL_MARK = "# run by jobrunner.py --local\n"  # ends the script of such a submission
# What the ledger keeps of a job that has ended, and its types.
SEEN: dict[str, tuple[type, ...]] = {
    "state": (str,), "code": (int, type(None)), "note": (str,), "elapsed": (int, type(None)),
}  # fmt: skip
_NAME = re.compile(r"[\w+.-]+", re.ASCII)  # of a token or a job, which name files
_FOLDERS = ("scripts", "events", "logs", "pointers", "locks")


@dataclass
class Submission:
    """One call of sbatch, or one group of jobs that runs on this machine.

    Attributes:
        token: unique, part of SLURM's job name.
        name: SLURM's job name.
        group: the group's name.
        jobs: job ids in the order of their task numbers.
        array: whether it is a job array.
        created: when the name was written down, before sbatch was called; seconds since the epoch.
        slurm_id: SLURM's number; LOCAL on this machine; None while nobody knows whether SLURM has it.
        seen: how tasks ended, by task number. It is kept because SLURM forgets jobs that have ended.
        variables: what stood for the environment variables in the jobs' overrides (variables.py).
    """

    token: str
    name: str
    group: str
    jobs: list[str]
    array: bool
    created: float
    slurm_id: str | None = None
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)  # empty in ledgers of earlier versions

    def task_id(self, task: int) -> str | None:
        """SLURM's number of one task; None while the submission has none."""
        if self.slurm_id is None or self.slurm_id == LOCAL:
            return self.slurm_id
        return f"{self.slurm_id}_{task}" if self.array else self.slurm_id


@dataclass
class Ledger:
    """What is written in ``state.json``. A change needs ``changing``, and ``save`` writes it."""

    folder: Path
    submissions: list[Submission] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # job id: SLURM's own words
    spent: list[str] = field(default_factory=list)  # tokens that led to no job; never used again
    taken: set[str] = field(default_factory=set)  # tokens of other jobs that SLURM lists; not written

    @property
    def file(self) -> Path:
        """The file that ``save`` writes."""
        return self.folder / "state.json"

    def script(self, token: str) -> Path:
        """The script of a submission."""
        return self.folder / "scripts" / f"{token}.sh"

    @classmethod
    def load(cls, folder: Path) -> Ledger:
        """The ledger in ``folder``. What its file lacks, as an older copy or a missing one does, is read from the
        scripts, without SLURM's numbers.

        Raises:
            UserError: the file cannot be read or is not a ledger.
        """
        file = cls(folder).file
        ledger = cls(folder)
        try:
            ledger = cls(folder, *_parsed(read_bytes(file)))
        except FileNotFoundError:
            pass
        except (KeyError, TypeError, ValueError, RecursionError, UserError) as error:
            raise UserError(
                f"{file} is not a sweep's state ({error}). Move it away: what was sent is then read from the scripts "
                "beside it, and looked up."
            ) from None
        ledger.submissions += _from_scripts(folder, {*(one.token for one in ledger.submissions), *ledger.spent})
        return ledger

    def save(self) -> None:
        """Write the file as a whole; a kill leaves the old one."""
        submissions = [asdict(submission) for submission in self.submissions]
        for one in submissions:
            if not one["variables"]:  # as earlier versions write it, and read it
                del one["variables"]
        content = {"version": VERSION, "submissions": submissions, "refused": self.refused, "spent": self.spent}
        write_json(self.file, content)

    def drop(self, submission: Submission) -> None:
        """Remove a submission that led to no job; its token is not used again."""
        self.submissions.remove(submission)
        self.spent.append(submission.token)

    def latest(self) -> dict[str, tuple[Submission, int]]:
        """Each job's newest submission and its task number there."""
        return {job: (submission, task) for submission in self.submissions for task, job in enumerate(submission.jobs)}

    def next_token(self, group: Group, jobs: list[Job]) -> str:
        """The token of the next submission of these jobs: never used before, and the same until it is written down."""
        used = {submission.token for submission in self.submissions}.union(self.spent, self.taken)
        used |= {path.stem for path in (self.folder / "scripts").glob("*.sh")}
        used |= {path.name.rpartition("-")[0] for path in (self.folder / "events").glob("*-*")}
        text = "\n".join([str(self.folder), group.name, *(job.id for job in jobs)])
        tokens = (hashlib.sha256(f"{attempt}\n{text}".encode()).hexdigest()[:10] for attempt in itertools.count())
        return next(token for token in tokens if token not in used)


def _parsed(text: bytes) -> tuple[list[Submission], dict[str, str], list[str]]:
    """What the file of a ledger says. Raises KeyError, TypeError, ValueError or RecursionError for anything else."""
    content = json.loads(text)
    if content["version"] != VERSION:
        raise ValueError(f"its version is {content['version']}, this jobrunner knows {VERSION}")
    submissions = [_checked(Submission(**submission)) for submission in content["submissions"]]
    refused, spent = content["refused"], content["spent"]
    if not isinstance(refused, dict) or not isinstance(spent, list):
        raise TypeError("refused or spent is of a wrong type")
    if not all(isinstance(text, str) for text in [*refused.values(), *spent]):
        raise TypeError("refused or spent has a value that is no text")
    return submissions, refused, spent


def _checked(one: Submission) -> Submission:
    """Return the submission. Raises TypeError for a field of a wrong type, since a file may hold anything."""
    texts = [one.token, one.name, one.group, *(one.jobs if isinstance(one.jobs, list) else [None])]
    if not all(isinstance(text, str) for text in texts) or not all(map(_NAME.fullmatch, (one.token, *one.jobs))):
        raise TypeError("token, name, group or jobs of a submission")
    if not isinstance(one.array, bool) or not isinstance(one.created, (int, float)) or not 0 <= one.created < 2**40:
        raise TypeError(f"array or created of {one.name}")
    if one.slurm_id is not None and not re.fullmatch(rf"\d+|{LOCAL}", str(one.slurm_id)):
        raise TypeError(f"slurm_id of {one.name}")
    if not isinstance(one.variables, dict) or not all(isinstance(text, str) for text in one.variables.values()):
        raise TypeError(f"variables of {one.name}")
    for entry in one.seen.values() if isinstance(one.seen, dict) else [None]:
        if not isinstance(entry, dict) or entry.keys() != set(SEEN):
            raise TypeError(f"seen of {one.name}")
        if not all(isinstance(entry[key], kinds) for key, kinds in SEEN.items()):
            raise TypeError(f"seen of {one.name}")
    return one


def _from_scripts(folder: Path, known: set[str]) -> list[Submission]:
    """The submissions whose scripts are in ``folder``, except of ``known`` tokens: oldest first, without numbers."""
    found = []
    for path in (path for path in (folder / "scripts").glob("*.sh") if path.stem not in known):
        text = path.read_text(encoding="utf-8", errors="replace")
        match = re.search(r"^jobs=\(([\w+. -]+)\)$", text, re.M)
        if match and _NAME.fullmatch(path.stem):
            jobs = match[1].split()
            group = jobs[0].rpartition(".")[0]
            number = LOCAL if text.endswith(LOCAL_MARK) else None
            array = re.search(r"^task=0$", text, re.M) is None
            made = path.stat().st_mtime
            found.append(Submission(path.stem, f"{group}.{path.stem}", group, jobs, array, made, number))
    return sorted(found, key=lambda submission: submission.created)


@contextlib.contextmanager
def changing(folder: Path, patience: float | None = None) -> Iterator[Ledger]:
    """The ledger in ``folder``, for this process alone to change.

    Raises:
        UserError: the folder cannot be made, or another process still changes the ledger after ``patience`` seconds
            (default: PATIENCE).
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
            except UserError:  # --watch holds it for a moment to write how jobs ended
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
        yield Ledger.load(folder)


@contextlib.contextmanager
def handover(folder: Path) -> Iterator[int]:
    """Hold the handover lock; yield the descriptor that sbatch inherits.

    Raises:
        UserError: an sbatch that outlived its jobrunner still runs after two minutes.
    """
    with open(folder / "handover.lock", "a") as file:
        end = time.monotonic() + HANDOVER_PATIENCE
        sbatch = ("cmdline", "\0--parsable\0", f"\0{folder}/scripts/")
        while not _locked(file.fileno(), sbatch):
            if time.monotonic() > end:
                raise UserError(f"an earlier sbatch for {folder} still runs. End it or wait for it, then call again.")
            time.sleep(0.05)
        yield file.fileno()


def noted_runs(folder: Path, job: str) -> list[str]:
    """The run directories that ``job`` has noted, the newest last; none before it trains."""
    try:
        return (folder / "pointers" / job).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def unfit(folder: Path, job: str) -> str:
    """Why the settings of ``job`` do not fit the model or the data, if train.py has noted that; else empty."""
    try:
        return (folder / "pointers" / f"{job}{UNFIT_NOTE}").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def forget_unfit(folder: Path, jobs: Iterable[str]) -> None:
    """Drop these notes, so that a search waits for the trials again."""
    for job in jobs:
        (folder / "pointers" / f"{job}{UNFIT_NOTE}").unlink(missing_ok=True)


def lock_file(folder: Path, job: str) -> Path:
    """The file that the processes of ``job`` hold locked while it runs on this machine."""
    return folder / "locks" / job


def is_running(folder: Path, job: str) -> bool:
    """Whether ``job`` runs on this machine, that is, one of its processes holds its lock."""
    file = lock_file(folder, job)
    try:
        handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # a shared lock: of two that ask at once neither takes the other for the job
        return not _locked(handle, ("environ", f"\0{JOB_LOCK}={file}\0"), fcntl.LOCK_SH)
    finally:
        os.close(handle)


def _locked(handle: int, holder: tuple[str, ...], kind: int = fcntl.LOCK_EX) -> bool:
    """Lock ``handle``; False if another process has it. On a file system without locks, ``holder`` has it."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return not has_process(*holder)
    return True
