"""Files that are gone or damaged when a run goes on: checkpoints, pointers, records; and a disk that really fills."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from scripts.faults.attempts import attempt
from scripts.faults.faults import REFUSED, after_full_disk, interrupted, told
from scripts.faults.ledger import Laboratory, Row, say
from scripts.faults.material import CASES, Case, stage
from utils.runs import Run

KINDS = ("truncated", "bit flipped", "emptied", "missing")


def harm(path: Path, kind: str, chance: random.Random) -> None:
    """Damage a file in one of the ``KINDS``, in a copy of its own: others may link to the same content."""
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == "missing":
        return
    if kind == "truncated":
        content = content[: chance.randrange(len(content))]
    elif kind == "bit flipped":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        content.clear()
    path.write_bytes(content)


def checkpoints(lab: Laboratory, times: int, chance: random.Random) -> None:
    """One file of the last checkpoint, of the best, of all; and the pointers."""
    last = lab.row("a damaged or missing file of the last checkpoint", "named; the checkpoint before it is used")
    every = lab.row("such a file in every checkpoint", "each named; refused, never from scratch in silence")
    pointer = lab.row("a missing or dangling pointer to the last", "the newest whole checkpoint is used")
    for number in range(times):
        case = CASES[number % len(CASES)]
        lab.undisturbed(case, ("train",))
        steps = lab.whole[case, "train"].entered["step"]
        out, run = interrupted(lab, case, chance.randint(steps // 2, steps - 1))
        files = sorted(path.name for path in run.last.resolve().iterdir())
        _harm_last(lab, last, case, out, run, files[number % len(files)], chance)
        out, run = interrupted(lab, case, chance.randint(steps // 2, steps - 1))
        name = chance.choice(files)
        for folder in run.checkpoints.glob("step-*"):
            harm(folder / name, chance.choice(KINDS), chance)
        every.caused += 1
        before = sorted(str(path) for path in run.checkpoints.rglob("*"))
        told(every, case, attempt(stage("train", case, lab.data, out), out), name, "complete")
        if before != sorted(str(path) for path in run.checkpoints.rglob("*")):
            every.note("lost", f"{case}: its checkpoints are touched")
        shutil.rmtree(out.parent)
        out, run = interrupted(lab, case, chance.randint(steps // 2, steps - 1))
        run.last.unlink()
        if number % 2:
            run.last.symlink_to("step-99999999")
        pointer.caused += 1
        lab.finish(pointer, case, out)


def _harm_last(lab: Laboratory, row: Row, case: Case, out: Path, run: Run, name: str, chance: random.Random) -> None:
    folder, kind = run.last.resolve(), chance.choice(KINDS)
    is_best = run.best.resolve() == folder
    kept = (folder / name).read_bytes()
    harm(folder / name, kind, chance)
    row.caused += 1
    ended = attempt(stage("train", case, lab.data, out), out)
    if is_best and ended.code == REFUSED:  # a part of the result is gone: only the user can say what to do
        told(row, case, ended, name, str(run.best))
        (folder / name).write_bytes(kept)
        lab.finish(row, case, out)
        return
    told(row, case, ended, folder.name, name, code=0)
    lab.compare(row, case, out, "train")


def full_disks(lab: Laboratory, times: int, chance: random.Random) -> bool:
    """A small file system that is filled up to a random amount; False where none can be mounted."""
    row = lab.row(
        "a disk that fills (a small tmpfs)", "stops, names the file and the reason; earlier results stay whole"
    )
    for number in range(times):
        case, name = CASES[number % len(CASES)], ("train", "train", "eval", "score")[number % 4]
        lab.undisturbed(case, ("train", "eval", "score"))
        with mounted(lab.folder / f"disk-{number}") as disk:
            if disk is None:
                del lab.rows[row.fault]
                return False
            out = disk / "x" / "runs"
            out.mkdir(parents=True)
            for earlier in {"train": (), "eval": ("train",), "score": ("train", "eval")}[name]:
                attempt(stage(earlier, case, lab.data, out), out)
            used = {"train": _size(lab, case), "eval": 8 << 10, "score": 4 << 10}[name]
            fill(disk, chance.randrange(used))
            ended = attempt(stage(name, case, lab.data, out), out)
            (disk / "ballast").unlink()
            if ended.code == 0 and "TensorBoard" not in ended.output and "train.log" not in ended.output:
                continue  # it had room enough
            row.caused += 1
            after_full_disk(lab, row, case, name, out, ended)
    return True


def _size(lab: Laboratory, case: Case) -> int:
    """Bytes of the undisturbed run's files."""
    folder = lab.folder / "undisturbed" / f"{case.dataset}-{case.method}"
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def fill(disk: Path, left: int) -> None:
    """A file that leaves ``left`` bytes, rounded to the file system's blocks."""
    free = shutil.disk_usage(disk).free
    (disk / "ballast").write_bytes(b"\0" * max(free - left, 0))


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Path | None]:
    """A file system of 32 MiB in memory; None where mounting is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        done = None
    if done is None or done.returncode:
        say(f"no file system can be mounted here: {done.stderr.strip() if done else 'no mount command'}")
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
