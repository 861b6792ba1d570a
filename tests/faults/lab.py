"""The runs that faults are caused on, what they are compared with, and the count of what came of it. What a run came to
are facts without what may differ (times, paths): two runs are the same if these are."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.faults.commands import Command, Ended, Kill
from utils.data.e2e import E2E

TIMED = ("samples_per_second", "tokens_per_second", "peak_memory_mib", "seconds")
# Of a checkpoint's progress: what is measured, and lengths of texts with times in them.
UNEQUAL = ("board", "seconds", "peak_memory_mib", "metrics_position")
RECORD = ("status", "error", "dataset", "method", "rank", "parameters", "data", "progress", "best", "last")
BOARD, FILES = "TensorBoard", "files"
AGAIN = r"(?<=\d{8})-\d+"  # tells a step's second checkpoint from its first
STAGES = ("train", "eval", "score")
INTERRUPTED = 75  # exit code after a signal
BAD_INPUT = "a bad input"
MAY_LACK = (BOARD, FILES)  # facts that may differ where TensorBoard's files could not be written


class Lost(AssertionError):
    """A run does not get to its end by the same command, or started from scratch without a word."""


class Changed(AssertionError):
    """A result differs from the undisturbed run's."""


Case = tuple[str, str]  # a method and a data set
CASES: list[Case] = [(method, data) for data in ("e2e_nlg", "eli5") for method in ("rosa", "lora", "none")]


class Undisturbed(NamedTuple):
    """A stage of a case without any fault: its folder, how it ended, and the facts of the run then."""

    out: Path
    ended: Ended
    facts: dict[str, str]


class Lab:
    """All folders, the undisturbed runs, and the counts."""

    def __init__(self, folder: Path, e2e: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.rows: dict[str, Counter[str]] = {}  # fault → how often it was caused, runs were lost ...
        self.seen: dict[str, str] = {}  # fault → what a user sees of it
        self.current: Counter[str] = Counter()  # the row that a failing test belongs to
        self.struck: Counter[str] = Counter()  # "stage: last file" → kills
        self.inputs: dict[str, Counter[str]] = {}  # kind of bad input → accepted, refused
        self.made: list[Path] = []  # folders to remove when the test under way has passed
        self._undisturbed: dict[tuple[Case, str], Undisturbed] = {}
        _write_data(self.data, e2e)

    def row(self, fault: str, seen: str, caused: int = 1) -> Counter[str]:
        """Count a fault; what goes wrong from now on is counted in its row."""
        self.seen[fault], self.current = seen, self.rows.setdefault(fault, Counter())
        self.current["caused"] += caused
        return self.current

    def out(self) -> Path:
        """A new, empty output folder."""
        path = Path(tempfile.mkdtemp(dir=self.folder)) / "runs"
        path.mkdir()
        self.made.append(path.parent)
        return path

    def words(self, stage: str, case: Case, out: Path, *more: str) -> list[str]:
        """The command of a stage as a user types it: three epochs, dropout, checkpoints every other step."""
        if stage == "eval":
            return ["eval.py", str(out), "--device=cpu", "--num-beams=2", "--max-new-tokens=12"]
        if stage == "score":
            return ["utils.metrics.scoring.score_runs", str(out)]  # what eval.sh does
        return [
            "train.py", f"fnmodel.name={case[0]}", f"dataset.name={case[1]}", f"dataset.path={self.data / case[1]}",
            f"output.path={out}", "fnmodel.params.rank=0.1", "model.name=tiny",
            "model.dropout=0.1", "train.batch_size=16", "train.epochs=3", "train.lr=3e-3", "train.device=cpu",
            "train.save_every=2", "train.block_size=64", "logging.print_freq=2", "logging.samples=1", *more,
        ]  # fmt: skip

    def run(self, stage: str, case: Case, out: Path, *more: str, **disturbed: Any) -> Ended:
        """A stage's command with more overrides, waited for; ``disturbed`` as ``Command`` takes it."""
        ended = Command(self.words(stage, case, out, *more), out, **disturbed).wait()
        for pattern in ("*.json", "checkpoints/step-*/state.json"):
            for path in out.glob(f"*/*/{pattern}"):
                json.loads(path.read_text())  # at whatever moment a command is stopped: old or new, never half
        return ended

    def undisturbed(self, case: Case, stage: str) -> Undisturbed:
        """The stage after the ones before it, without any fault."""
        if (case, stage) not in self._undisturbed:
            out = self.before(stage, case)
            ended = self.run(stage, case, out)
            ended.check(code=0)
            self._undisturbed[case, stage] = Undisturbed(out, ended, facts(run_in(out)))
            self.made.remove(out.parent)
        return self._undisturbed[case, stage]

    def before(self, stage: str, case: Case) -> Path:
        """A new output folder as it is before this stage."""
        out = self.out()
        if stage != "train":
            earlier = self.undisturbed(case, STAGES[STAGES.index(stage) - 1]).out
            shutil.copytree(earlier, out, symlinks=True, dirs_exist_ok=True)
        return out

    def stopped(self, case: Case, chance: random.Random) -> tuple[Path, Path]:
        """A run that SIGTERM stopped in the second half of training: its output folder, and its own."""
        saves = self.undisturbed(case, "train").ended.operations("checkpoints")
        out, at = self.out(), chance.choice(saves[len(saves) // 2 : -len(saves) // 4])
        self.run("train", case, out, kill=Kill(at, signal=signal.SIGTERM)).check(code=INTERRUPTED)
        return out, run_in(out)

    def finish(
        self, stage: str, case: Case, out: Path, *more: str, like: Path | None = None, but: tuple[str, ...] = ()
    ) -> None:
        """The same command again, and the comparison with the undisturbed run, or the one in ``like``; see facts."""
        ended = self.run(stage, case, out, *more)
        if ended.code:
            raise Lost(f"{stage} of {case} in {out} ends with {ended.code}: {ended.output[-1500:]}")
        expected = facts(run_in(like)) if like else self.undisturbed(case, stage).facts
        if different := differences(expected, facts(run_in(out)), but):
            raise Changed(f"{case} in {out}: {'; '.join(different)}")


def _write_data(folder: Path, e2e: Path) -> None:
    """``e2e``'s files, and questions and answers made of the same texts."""
    shutil.copytree(e2e, folder / "e2e_nlg")
    (folder / "eli5").mkdir()
    for split in ("train", "validation", "test"):
        pairs = E2E().load(split, e2e, None)[:32]  # as many as E2E's would make many more steps
        lines = (json.dumps({"question": f"What is {p.source}?", "answer": p.reference}) + "\n" for p in pairs)
        (folder / "eli5" / f"{split}.jsonl").write_text("".join(lines))


def run_in(out: Path) -> Path:
    """The one run below ``out``, which may have been killed before it had a record."""
    (run,) = {path.parent for name in (".train.lock", "run.json") for path in out.glob(f"*/*/{name}")}
    return run


def facts(run: Path) -> dict[str, str]:
    """Name → everything that a user gets, as text: weights, optimizer, points, predictions, scores, TensorBoard."""
    found: dict[str, Any] = {}
    for name in ("best", "last"):
        folder = run / "checkpoints" / name
        found[f"{name} name"] = re.sub(AGAIN, "", folder.resolve().name)
        found |= {f"{name} {path.name}": path.read_bytes() for path in folder.glob("*.safetensors")}
        if folder.is_dir():  # train.keep_last=false leaves the best alone
            found[f"{name} state"] = torch.load(folder / "state.pt", weights_only=True)
            progress = json.loads((folder / "state.json").read_text())["progress"]
            found[f"{name} progress"] = {key: progress[key] for key in progress if key not in UNEQUAL}
    points = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found["metrics.jsonl"] = [{key: point[key] for key in point if key not in TIMED} for point in points]
    record = json.loads((run / "run.json").read_text())
    found["run.json"] = [*(record[key] for key in RECORD), record["timings"]["resamples"]]
    found[BOARD] = _events(run)
    found |= {path.name: path.read_bytes() for path in run.glob("test_*")}
    for path in (run / "eval.json", run / "scores.json"):
        found[path.name] = {**json.loads(path.read_text())["test"], "checkpoint_sha256": ""} if path.exists() else None
    # the file of a lock is no result: one that a kill leaves behind blocks nobody
    names = [str(p.relative_to(run)) for p in run.rglob("*") if "tfevents" not in p.name and p.suffix != ".lock"]
    # a stop saves a checkpoint of its own, which may be the one kept before the last: how many there are is compared
    files = " ".join(sorted(re.sub(rf"step-\d+({AGAIN})?", "step", name) for name in names))
    return {FILES: files} | {name: json.dumps(value, default=_bits, sort_keys=True) for name, value in found.items()}


def _bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        flat = value.contiguous().view(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
        return [str(value.dtype), value.shape, _bits(content)]
    return hashlib.sha256(value).hexdigest()


def differences(expected: dict[str, str], found: dict[str, str], but: tuple[str, ...] = ()) -> list[str]:
    """The names of the facts that differ or that one of the two has not, without those in ``but``."""
    different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    extra = " ".join(sorted({*expected[FILES].split()} ^ {*found[FILES].split()}))
    return [f"{name}: {extra}" if name == FILES else name for name in different if name not in but]


def _events(folder: Path) -> list[Any]:
    """Every value in TensorBoard's files, repeated ones repeated: (tag, step, number); of texts no content."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found = []
    for path in folder.glob("events.out.tfevents.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                timed = value.tag.rpartition("/")[2] in TIMED
                number = value.simple_value if value.HasField("simple_value") and not timed else None
                found.append((value.tag, event.step, number))
    return sorted(found, key=repr)
