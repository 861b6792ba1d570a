"""The runs that faults are caused on, what they are compared with, and the count of what came of it."""

from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.commands import Command, Ended, Kill
from tests.faults.compare import BOARD, FILES, differences, facts, run_in

ROOT = Path(__file__).parents[2]
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
            return ["utils.metrics", "--runs", str(out)]  # what eval.sh does
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
    for split, name in (("train", "trainset"), ("validation", "devset"), ("test", "testset_w_refs")):
        with (e2e / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:33]  # as many as E2E's pairs would make many more steps
        lines = (json.dumps({"question": f"What is {mr}?", "answer": ref}) + "\n" for mr, ref in rows)
        (folder / "eli5" / f"{split}.jsonl").write_text("".join(lines))
