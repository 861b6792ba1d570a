"""metrics.jsonl and TensorBoard: the logging points of a run.

metrics.jsonl is a part of the result: training stops if it cannot be written. TensorBoard shows the same to people: if
its files cannot be written, there is one warning and training goes on.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from typing import Any

from utils.io.files import open_in_place
from utils.log import log
from utils.runs.run import Run


class MetricsWriter:
    """Logging points to metrics.jsonl and, under the same names, to TensorBoard.

    A resume truncates both to their size at the checkpoint, so that no point is lost or appears twice.
    """

    def __init__(self, run: Run, progress: Any) -> None:
        """``progress`` is that of the checkpoint from which training resumes (``Progress``)."""
        position: int = progress.metrics_position
        self._file = os.fdopen(open_in_place(run.metrics_file), "r+", encoding="utf-8")
        size = self._file.seek(0, os.SEEK_END)
        if size < position:
            log.warning("%s has lost its last %d bytes: its points are gone", run.metrics_file, position - size)
        self._file.truncate(min(position, size))
        self._file.seek(0, os.SEEK_END)
        self._board = _Board(run, progress.board, progress.step)

    def note_positions(self, progress: Any) -> None:
        """Write everything to the disk, and put the files' sizes into ``progress``."""
        self._file.flush()
        os.fsync(self._file.fileno())
        progress.metrics_position, progress.board = self._file.seek(0, os.SEEK_END), self._board.sizes()

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One logging point: optimizer step (from 1), epochs done, and named values; JSON has null for NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 4), "split": split, **finite}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self.scalar(f"{split}/{name}", value, step)

    def scalar(self, name: str, value: float, step: int = 0) -> None:
        """A number for TensorBoard; at step 0 for one that belongs to the whole run."""
        self._board.do(lambda board: board.add_scalar(name, value, step))

    def text(self, name: str, step: int, text: str) -> None:
        """A text for TensorBoard."""
        self._board.do(lambda board: board.add_text(name, text, step))

    def hyperparameters(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """Settings with final metrics, for TensorBoard's table of runs."""
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        final = {f"final/{k}": v for k, v in metrics.items()}
        self._board.do(lambda board: board.add_hparams(plain, final, run_name="."))

    def close(self) -> None:
        self._file.close()
        self._board.do(lambda board: board.close())


class _Board:
    """TensorBoard's files of a run, taken back to the sizes that a checkpoint recorded."""

    def __init__(self, run: Run, sizes: dict[str, int], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._writer: Any = None
        threading.excepthook = _quiet_writer
        try:
            for path in run.board_files():
                if path.name in sizes and path.is_file() and not path.is_symlink():
                    os.truncate(path, min(sizes[path.name], path.stat().st_size))
                else:
                    path.unlink()
            # a running TensorBoard may have read the steps that are repeated now: purge_step makes it drop them
            self._writer = SummaryWriter(str(run.path), purge_step=step + 1 if step else None)
        except Exception as error:
            self._give_up(error)

    def do(self, act: Callable[[Any], Any]) -> None:
        """Call ``act`` with TensorBoard's writer, unless an earlier call failed."""
        try:
            if self._writer is not None:
                act(self._writer)
        except Exception as error:  # of any kind: a display must not end a training
            self._give_up(error)

    def sizes(self) -> dict[str, int]:
        """The size in bytes of each file, with everything flushed."""
        self.do(lambda board: board.flush())
        return {path.name: path.stat().st_size for path in self._run.board_files() if path.is_file()}

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        log.warning("TensorBoard's files in %s cannot be written: %s. Training goes on.", self._run.path, error)


def _quiet_writer(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback for TensorBoard's writing thread: the next call raises its error, which is reported."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failed)
