"""What a run says: a progress bar in a terminal or plain lines elsewhere, train.log, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from utils.runs import Run

log = logging.getLogger("rosa.run")
FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


class _AboveBar(logging.Handler):
    """Writes records to stderr without tearing a progress bar; with a bar, progress lines stay in the file."""

    def emit(self, record: logging.LogRecord) -> None:
        if not (getattr(record, "progress", False) and sys.stderr.isatty()):
            tqdm.write(record.getMessage(), file=sys.stderr)


@contextlib.contextmanager
def run_log(run: Run, main: bool = True) -> Iterator[None]:
    """Send ``log`` to the terminal and to the run's train.log for the length of a ``with`` block.

    Args:
        main: whether this is the process that writes; the others stay silent.
    """
    handlers: list[logging.Handler] = []
    if main:
        file = logging.FileHandler(run.log_file, encoding="utf-8")
        file.setFormatter(FORMAT)
        handlers = [file, _AboveBar()]
    log.setLevel(logging.INFO if main else logging.CRITICAL)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


def progress(text: str) -> None:
    """A line for the log that a terminal shows as its progress bar instead."""
    log.info(text, extra={"progress": True})


def progress_bar(total: int, start: int = 0, unit: str = "step", main: bool = True) -> tqdm:
    """A bar on stderr if that is a terminal, else nothing."""
    return tqdm(total=total, initial=start, unit=unit, disable=not (main and sys.stderr.isatty()), dynamic_ncols=True)


class MetricsWriter:
    """Logging points to metrics.jsonl and, under the same names, to TensorBoard.

    A resume truncates metrics.jsonl to the checkpoint's position and purges later TensorBoard steps, so that
    no point appears twice.
    """

    def __init__(self, run: Run, position: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._file = open(run.metrics_file, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._file.truncate(position)
        self._board = SummaryWriter(str(run.path), purge_step=step + 1 if step else None)

    @property
    def position(self) -> int:
        """Bytes written to metrics.jsonl, all on disk."""
        self._file.flush()
        return self._file.seek(0, 2)

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One logging point: optimizer step (from 1), epochs done, and named values."""
        self._file.write(json.dumps({"step": step, "epoch": round(epoch, 4), "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def scalar(self, name: str, value: float) -> None:
        """A number that belongs to the whole run, for TensorBoard."""
        self._board.add_scalar(name, value, 0)

    def text(self, name: str, step: int, text: str) -> None:
        """A text for TensorBoard."""
        self._board.add_text(name, text, step)

    def hyperparameters(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """Settings with final metrics, for TensorBoard's table of runs."""
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}
        self._board.add_hparams(plain, {f"final/{k}": v for k, v in metrics.items()}, run_name=".")

    def close(self) -> None:
        self._file.close()
        self._board.close()
