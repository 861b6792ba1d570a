"""What was caused and what came of it, fault by fault."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.faults.attempts import Ended, attempt
from scripts.faults.compare import BOARD, FILES, differences, facts, half_written
from scripts.faults.material import Case, run_in, stage

# How many of each fault: kills of forked attempts and of typed commands, of each other fault, bad inputs, ...
FULL = {"kills": 200, "typed": 24, "times": 6, "inputs": 1000, "jobs": 3, "settings": 15}
QUICK = {"kills": 20, "typed": 1, "times": 1, "inputs": 500, "jobs": 0, "settings": 0}
LIVES = 60  # attempts after which a run that does not get to its end is lost


@dataclass
class Row:
    """One fault of the table.

    Attributes:
        caused: how often it really struck.
        lost: runs that did not get to their end by the same command, or that started over in silence.
        changed: runs whose result differs from the undisturbed one's.
        other: tracebacks, half-written files, messages that name neither file nor key.
        told: what a user sees.
    """

    fault: str
    told: str
    caused: int = 0
    lost: int = 0
    changed: int = 0
    other: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return self.lost + self.changed + self.other

    def note(self, kind: str, text: str) -> None:
        """Count a ``lost``, ``changed`` or ``other`` and keep what is needed to find out why."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.details.append(f"{kind}: {text}")
        say(f"  {self.fault}: {kind}: {text[:1500]}")


class Laboratory:
    """The folder for all runs, the data, and the undisturbed runs to compare with."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.rows: dict[str, Row] = {}
        self.facts: dict[tuple[Case, str], dict[str, str]] = {}
        self.whole: dict[tuple[Case, str], Ended] = {}
        self._number = 0

    def row(self, fault: str, told: str = "") -> Row:
        return self.rows.setdefault(fault, Row(fault, told))

    def place(self, name: str) -> Path:
        """A new, empty output folder."""
        self._number += 1
        path = self.folder / f"{self._number:04d}-{name}" / "runs"
        path.mkdir(parents=True)
        return path

    def undisturbed(self, case: Case, stages: tuple[str, ...]) -> Path:
        """Run ``stages`` of the case without any fault and keep what they give; its output folder."""
        out = self.folder / "undisturbed" / f"{case.dataset}-{case.method}"
        out.mkdir(parents=True, exist_ok=True)
        for name in stages:
            if (case, name) not in self.facts:
                ended = attempt(stage(name, case, self.data, out), out)
                if ended.code != 0:
                    raise RuntimeError(f"{name} of {case} fails undisturbed:\n{ended.output}")
                self.whole[case, name], self.facts[case, name] = ended, facts(run_in(out))
        return out

    def finish(self, row: Row, case: Case, out: Path, upto: str = "train", lenient: bool = False) -> None:
        """The same command again until it ends well, then the comparison with the undisturbed run.

        Args:
            lenient: TensorBoard's files may lack what could not be written.
        """
        ended = attempt(stage(upto, case, self.data, out), out)
        if ended.code != 0:
            row.note("lost", f"{case}: {upto} ends with {ended.code}: {ended.output[-800:]}")
            return
        self.compare(row, case, out, upto, lenient)

    def compare(self, row: Row, case: Case, out: Path, upto: str, lenient: bool = False) -> None:
        """Count a run that is not whole or differs from the undisturbed one; a good one is removed."""
        try:
            found, expected = facts(run_in(out)), dict(self.facts[case, upto])
        except Exception as error:  # a part of the result is not there, or cannot be read
            row.note("lost", f"{case} in {out}: {type(error).__name__}: {error}")
            return
        for dropped in (BOARD, FILES) if lenient else ():
            found.pop(dropped), expected.pop(dropped)
        if different := differences(expected, found):
            row.note("changed", f"{case} in {out}: {'; '.join(different)}")
        else:
            shutil.rmtree(out.parent)

    def check_wreck(self, row: Row, case: Case, out: Path, ended: Ended) -> None:
        """What must hold of whatever a stopped attempt left behind."""
        if not any(out.glob("*/*/.train.lock")):
            return
        if half := half_written(run_in(out)):
            row.note("other", f"{case} in {out}: half-written {', '.join(half)}")
        if ended.traceback:
            row.note("other", f"{case}: a traceback: {ended.output[-800:]}")


def say(text: str) -> None:
    """A line of progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def as_json(rows: dict[str, Row]) -> list[dict[str, Any]]:
    """The rows as the raw record has them."""
    return [
        {
            "fault": row.fault, "caused": row.caused, "runs_lost": row.lost, "results_changed": row.changed,
            "other_failures": row.other, "told": row.told, "details": row.details[:50],
        }
        for row in rows.values()
    ]  # fmt: skip
