"""The logging points of a run: metrics.jsonl, and the loggers that show the same to people.

metrics.jsonl is a part of the result: training stops if it cannot be written. A logger that fails is left out.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from typing import Any

from utils.io.files import open_in_place
from utils.log import log
from utils.runs.loggers import Loggers
from utils.runs.run import Run


class MetricsWriter:
    """Logging points to metrics.jsonl and, under the same names, to the loggers.

    A resume truncates metrics.jsonl and TensorBoard's files to their size at the checkpoint, so that no point is lost
    or appears twice. Damaged lines before that are named and become blanks, so that the positions in checkpoints stay
    right. A logger that cannot take points back does not get those again that metrics.jsonl had beyond it.

    Args:
        progress: that of the checkpoint from which training resumes (``Progress``).
        to: names of the loggers.
        settings: the run's configuration by dotted key.
    """

    def __init__(self, run: Run, progress: Any, to: Iterable[str], settings: dict[str, Any]) -> None:
        position: int = progress.metrics_position
        self._run = run
        self._file = os.fdopen(open_in_place(run.metrics_file), "r+", encoding="utf-8")
        size = self._file.seek(0, os.SEEK_END)
        if size < position:
            log.warning("%s has lost its last %d bytes: its points are gone", run.metrics_file, position - size)
        beyond = os.pread(self._file.fileno(), max(size - position, 0), position)
        self._repeated = set(map(_split_and_step, beyond.splitlines()))
        found = os.pread(self._file.fileno(), position, 0)
        os.pwrite(self._file.fileno(), _without_damage(found, run).ljust(position), 0)
        self._file.truncate(position)
        self._file.seek(0, os.SEEK_END)
        self._loggers = Loggers(to, run, settings, progress)

    def note_positions(self, progress: Any) -> None:
        """Write everything to the disk, and put the files' sizes into ``progress``."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._loggers.each(lambda logger: logger.flush())
        progress.metrics_position = self._file.seek(0, os.SEEK_END)
        progress.board = {path.name: path.stat().st_size for path in self._run.board_files() if path.is_file()}

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One logging point: optimizer step (from 1), epochs done, and named values; JSON has null for NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 4), "split": split, **finite}) + "\n")
        self._file.flush()
        self._show(
            {f"{split}/{name}": value for name, value in values.items()}, step, (split, str(step)) in self._repeated
        )

    def scalar(self, name: str, value: float) -> None:
        """A number for the loggers that belongs to the whole run."""
        self._show({name: value}, 0, bool(self._repeated))

    def text(self, name: str, step: int, text: str) -> None:
        """A text of a validation for the loggers."""
        self._show({name: text}, step, ("validation", str(step)) in self._repeated)

    def _show(self, values: dict[str, Any], step: int, repeated: bool) -> None:
        self._loggers.each(lambda logger: None if repeated and logger.holds_repeated else logger.log(values, step))

    def finish(self, metrics: dict[str, float]) -> None:
        """Give the loggers the final metrics of a run that has ended well."""
        self._loggers.each(lambda logger: logger.finish(metrics))

    def close(self) -> None:
        self._file.close()
        self._loggers.each(lambda logger: logger.close())


def _without_damage(content: bytes, run: Run) -> bytes:
    """The lines of metrics.jsonl with blanks for each damaged one and its end, so that they begin the next line.

    A last line without an end counts as damaged. A warning names the lines.
    """
    lines = content.splitlines(keepends=True)
    ended = [line.endswith(b"\n") and _split_and_step(line) is not None for line in lines]
    damaged = [number for number, line in enumerate(lines, 1) if line.strip() and not ended[number - 1]]
    if damaged:
        numbers = ", ".join(map(str, damaged[:8])) + (", ..." if len(damaged) > 8 else "")
        log.warning("%s: %d damaged lines are left out: line %s", run.metrics_file, len(damaged), numbers)
    return b"".join(line if whole else b" " * len(line) for line, whole in zip(lines, ended, strict=True))


def _split_and_step(line: bytes) -> tuple[str, str] | None:
    """The split and step of a line of metrics.jsonl; None for a damaged one, such as a kill leaves."""
    try:
        point = json.loads(line)
        return str(point["split"]), str(point["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
