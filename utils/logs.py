"""What a run says: a progress bar in a terminal or plain lines elsewhere, train.log, metrics.jsonl, TensorBoard.

metrics.jsonl is a part of the result: where it cannot be written, training stops. The terminal, train.log and
TensorBoard show the same to people: where they cannot be written, training says so once and goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from utils.files import open_in_place
from utils.runs import Run

log = logging.getLogger("rosa.run")
FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
LINE_EVERY = 60.0  # seconds between lines that stand in for a progress bar
EVENTS = "events.out.tfevents.*"  # TensorBoard's files


class _AboveBar(logging.Handler):
    """Writes records to stderr without tearing a progress bar; with a bar, progress lines stay in the file."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe or a full disk behind stderr
            if not (getattr(record, "progress", False) and sys.stderr.isatty()):
                tqdm.write(record.getMessage(), file=sys.stderr)


class _File(logging.StreamHandler[TextIO]):
    """Writes records to train.log for as long as that is possible."""

    def __init__(self, path: Path) -> None:
        descriptor = open_in_place(path)
        os.lseek(descriptor, 0, os.SEEK_END)
        super().__init__(os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace"))
        self.path = path
        self.setFormatter(FORMAT)

    def handleError(self, record: logging.LogRecord) -> None:
        log.removeHandler(self)
        log.warning("%s cannot be written any more: %s. Training goes on without it.", self.path, sys.exc_info()[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.close()
        super().close()


@contextlib.contextmanager
def run_log(run: Run | None, main: bool = True) -> Iterator[None]:
    """Send ``log`` to the terminal and to the run's train.log for the length of a ``with`` block.

    Args:
        run: None for the terminal alone.
        main: whether this is the process that writes; the others stay silent.
    """
    handlers: list[logging.Handler] = [_AboveBar()] if main else []
    log.setLevel(logging.INFO if main else logging.CRITICAL)
    log.propagate = False
    log.disabled = False  # Hydra disables all loggers that there are when it begins a job of a multirun
    for handler in handlers:
        log.addHandler(handler)
    try:
        if main and run is not None:
            try:
                handlers.append(_File(run.log_file))
                log.addHandler(handlers[-1])
            except OSError as error:
                log.warning("%s cannot be written: %s. Training goes on without it.", run.log_file, error.strerror)
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def progress(text: str) -> None:
    """A line for the log that a terminal shows as its progress bar instead."""
    log.info(text, extra={"progress": True})


def progress_bar(total: int, start: int = 0, main: bool = True) -> tqdm:
    """A bar of training steps on stderr if that is a terminal, else nothing: training has lines of its own."""
    return tqdm(total=total, initial=start, unit="step", disable=not (main and sys.stderr.isatty()), dynamic_ncols=True)


def watched(total: int, name: str, unit: str, main: bool = True) -> tqdm | _Lines:
    """How far something is that takes minutes, until it is done: a bar in a terminal, elsewhere a line each minute.

    Args:
        total: number of units; ``update`` of the result counts them.
        main: whether this is the process that writes; the others stay silent.
    """
    if main and not sys.stderr.isatty():
        return _Lines(total, name, unit)
    return tqdm(total=total, desc=name, unit=unit, leave=False, disable=not main, dynamic_ncols=True)


class _Lines:
    """The part of tqdm that ``watched`` needs, as lines in the log."""

    def __init__(self, total: int, name: str, unit: str) -> None:
        self.total, self.name, self.unit, self.done = total, name, unit, 0
        self.start = self.said = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        """Count more units as done."""
        self.done += count
        now = time.monotonic()
        if now - self.said >= LINE_EVERY:
            self.said = now
            left = tqdm.format_interval((now - self.start) / self.done * (self.total - self.done))
            log.info("%s: %s %d of %d, about %s left", self.name, self.unit, self.done, self.total, left)


class MetricsWriter:
    """Logging points to metrics.jsonl and, under the same names, to TensorBoard.

    A resume takes both back to where they were at the checkpoint, so that no point is lost or appears twice.
    """

    def __init__(self, run: Run, progress: Any) -> None:
        """``progress``: of the checkpoint that training goes on from (``state.Progress``)."""
        position: int = progress.metrics_position
        self._file = os.fdopen(open_in_place(run.metrics_file), "r+", encoding="utf-8")
        size = self._file.seek(0, os.SEEK_END)
        if size < position:
            log.warning("%s has lost its last %d bytes: its points are gone", run.metrics_file, position - size)
        self._file.truncate(min(position, size))
        self._file.seek(0, os.SEEK_END)
        self._board = _Board(run, progress.board, progress.step)

    def note_positions(self, progress: Any) -> None:
        """Put what is written so far, all of it on disk, into ``progress``."""
        self._file.flush()
        os.fsync(self._file.fileno())
        progress.metrics_position, progress.board = self._file.seek(0, os.SEEK_END), self._board.sizes()

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One logging point: optimizer step (from 1), epochs done, and named values; JSON has null for NaN."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 4), "split": split, **finite}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.do(lambda board, name=name, value=value: board.add_scalar(f"{split}/{name}", value, step))

    def scalar(self, name: str, value: float) -> None:
        """A number that belongs to the whole run, for TensorBoard."""
        self._board.do(lambda board: board.add_scalar(name, value, 0))

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
            for path in run.path.glob(EVENTS):
                if path.name in sizes and path.is_file() and not path.is_symlink():
                    os.truncate(path, min(sizes[path.name], path.stat().st_size))
                else:
                    path.unlink()
            # a TensorBoard that is running has read on: it drops the steps that come again
            self._writer = SummaryWriter(str(run.path), purge_step=step + 1 if step else None)
        except Exception as error:
            self._give_up(error)

    def do(self, act: Callable[[Any], Any]) -> None:
        """Do something with TensorBoard's writer, if there still is one."""
        try:
            if self._writer is not None:
                act(self._writer)
        except Exception as error:  # its own errors or the system's: what people look at must not end a training
            self._give_up(error)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, with all that was written so far."""
        self.do(lambda board: board.flush())
        return {path.name: path.stat().st_size for path in sorted(self._run.path.glob(EVENTS)) if path.is_file()}

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        log.warning("TensorBoard's files in %s cannot be written: %s. Training goes on.", self._run.path, error)


def _quiet_writer(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard's writing thread hands its error to the next call, which reports it: no traceback besides."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(failed)
